package driver

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A Delivery hands a message to a group. The transport makes it and the bus settles it. It belongs to one goroutine at
// a time. The transport does not read or change it once [Receiver.Next] has returned it, but for its History, which it
// reads when the delivery is settled.
type Delivery struct {
	Message   *message.Message
	Topic     string    // where the message was published; empty if the transport can't tell
	Group     string    // the group that it is handed to
	Attempt   int       // 1 for the first delivery to this group; snoozes and shutdowns don't count
	FirstSeen time.Time // when the group got the message; zero if the transport can't tell
	Settler   Settler   // the transport's side; nil under a stock Watermill router

	// FixedDelays is set if the transport has a queue for each of [Subscription].Delays. Then the delays of redeliveries
	// have no jitter.
	FixedDelays bool

	// Unreadable says why the message's headers could not be read; they are lost then. The bus poisons such a message with
	// this error and does not call its handler. It is nil for all other messages.
	Unreadable error

	// Fence is a fencing number in an ordered group. It grows with each change of the group's consumer, also when a consumer
	// does not know yet that another one has taken its place. An effect that is made only if no higher number has been seen
	// where it happens can't be made late by a consumer that was replaced. It is 0 in a group without an order, and if the
	// transport has none.
	Fence uint64

	// History travels with the message from delivery to delivery.
	History
}

// DeliveryFrom returns the delivery that ctx belongs to, nil outside of a handler.
func DeliveryFrom(ctx context.Context) *Delivery {
	d, _ := ctx.Value(DeliveryKey{}).(*Delivery)
	return d
}

// ContextWithDelivery returns a context inside the handling of d. The bus has contexts of its own, which answer
// [DeliveryKey] as well.
func ContextWithDelivery(ctx context.Context, d *Delivery) context.Context {
	return context.WithValue(ctx, DeliveryKey{}, d)
}

// DeliveryKey is the key of the *Delivery in a handler's context.
type DeliveryKey struct{}

// History is what happened to a message in all its deliveries to a group. The bus writes it, and a transport that takes
// a delivery back keeps it for the next one. The zero History is that of a message that has not failed.
type History struct {
	FailedSince  time.Time // when the handler first failed with it; zero if it has not
	Failures     int       // how many tries have failed and count against the retry policy, or FailuresUnknown
	WaitingSince time.Time // since when it waits for a newer version of the service; zero if it does not
	// DueAgain is when a message that has not failed was due again after its last snooze; zero if it had none. Only
	// metrics read it.
	DueAgain time.Time
}

// FailuresUnknown is the value of [History].Failures for a message that an older version of leat has redelivered, which
// counted no failures. The retry step derives them from the attempt.
const FailuresUnknown = -1

// Settler is the transport's side of a delivery. The bus calls one of its methods, once. A transport that takes the
// delivery back keeps its [History] for the next one. Ack may return before the transport has carried it out; an error
// means that the message may be redelivered.
type Settler interface {
	// Ack ends the delivery: the group is done with the message.
	Ack() error
	// Redeliver asks for the message again after the delay; the attempt counts.
	Redeliver(after time.Duration) error
	// GiveBack asks for the message again after the delay; the attempt does not count.
	GiveBack(after time.Duration) error
	// Poison moves the message to its group's poison queue and acks it. It returns nil only when
	// the poison queue has confirmed its copy; on an error the delivery is not settled.
	Poison(ctx context.Context, fault Fault) error
}
