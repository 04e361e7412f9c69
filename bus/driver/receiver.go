package driver

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A BacklogCounter is a [Receiver] that counts waiting messages. Every transport that is not durable must implement it: when a
// bus stops, it handles the messages that wait in such a transport before it closes it, and logs how many are lost.
type BacklogCounter interface {
	// Backlog returns how many messages of the group wait or are being handled now, and how many wait for a later time or
	// behind a poisoned message. It does not block, and may be called concurrently.
	Backlog() (now, later int)
}

// A ParkNotifier is a [Receiver] that reports messages that begin to be parked. It is optional, and makes sense for transports
// in the publisher's process. Without it, bus.Bus.Idle blocks while a message of the bus is parked.
type ParkNotifier interface {
	// OnPark registers fn. The transport calls it with each message that begins to wait behind a poisoned one. OnPark is
	// called before the first Next. fn does not block, and may be called concurrently.
	OnPark(fn func(*message.Message))
}

// A ParkedKeyCounter is a [Receiver] that counts the keys that poisoned messages hold back. It is optional, for transports that
// park. Without it, the health of the bus does not report parked keys.
type ParkedKeyCounter interface {
	// ParkedKeys returns how many keys of the group a poisoned message holds back, at most one in a strictly ordered group, and
	// [Unknown] if only another process knows. It blocks until the message system answers or ctx is done, and may be called
	// concurrently.
	ParkedKeys(ctx context.Context) (int, error)
}
