package driver

import "github.com/ThreeDotsLabs/watermill/message"

// BacklogCounter is a [Receiver] of a transport that is not durable. It is optional for others. A bus that stops handles
// what waits in such a transport before it closes it, and logs what it could not handle.
type BacklogCounter interface {
	// Backlog returns how many messages wait in the group: for now, and for a later time. It does not block, and may
	// be called concurrently.
	Backlog() (now, later int)
}

// ParkNotifier is a [Receiver] of a transport in the publisher's process that parks. It is optional. Without it, a bus
// can't be idle while a message of its own is parked.
type ParkNotifier interface {
	// OnPark makes the transport call fn with each message that begins to wait behind a poisoned one. It is called before
	// the first Next. fn does not block, and may be called concurrently.
	OnPark(fn func(*message.Message))
}
