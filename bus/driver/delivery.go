package driver

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A Delivery is a message that is delivered to a group. The transport creates it and the bus settles it. It belongs to one
// goroutine at a time. After [Receiver.Next] has returned it, the transport does not change it, and reads its History only,
// when the delivery is settled.
type Delivery struct {
	Message   *message.Message
	Topic     string    // the topic that the message was published to; empty if it is unknown
	Group     string    // the group that it is delivered to
	Attempt   int       // 1 for the first delivery to this group; snoozes and shutdowns don't count
	FirstSeen time.Time // when the group got the message; zero if it is unknown
	Settler   Settler   // the transport's side; nil under a stock Watermill router

	// FixedDelays is true if the transport has a queue for each of [Subscription].Delays. Then the delays of redeliveries have
	// no jitter.
	FixedDelays bool

	// Unreadable is the error with which reading the message's headers failed, nil if they could be read. The headers of such
	// a message are lost: the bus poisons it with this error and does not call its handler.
	Unreadable error

	// Fence is a fencing token in an ordered group. It grows whenever another consumer takes over the group, even if the former
	// consumer has not noticed yet. A store that rejects a write with a lower token than it has seen is safe from late writes
	// of a former consumer. Over SQL, several processes share the keys of a group: the token grows when one of them joins and
	// when messages are taken from one, so keep the highest token for each key. It is 0 in an unordered group, for a message
	// without a key over SQL, and if the transport does not support it.
	Fence uint64

	// History travels with the message from delivery to delivery.
	History
}

// DeliveryFrom returns the delivery that ctx belongs to, nil outside of a handler.
func DeliveryFrom(ctx context.Context) *Delivery {
	d, _ := ctx.Value(DeliveryKey{}).(*Delivery)
	return d
}

// ContextWithDelivery returns a context that carries d. The contexts of a bus's handlers carry their delivery already.
func ContextWithDelivery(ctx context.Context, d *Delivery) context.Context {
	return context.WithValue(ctx, DeliveryKey{}, d)
}

// DeliveryKey is the key of the *Delivery in a handler's context.
type DeliveryKey struct{}

// History records what happened to a message in all its deliveries to a group. The bus writes it. When a delivery is
// redelivered or given back, the transport stores its History for the next one. The zero value is the History of a message
// that has not failed.
type History struct {
	FailedSince  time.Time // when its handler first failed; zero if it has not
	Failures     int       // how many tries have failed and count against the retry policy, or FailuresUnknown
	WaitingSince time.Time // since when it waits for a newer version of the service; zero if it does not
	// DueAgain is when a message that has not failed was due again after its last snooze; zero if it had none. Only
	// metrics read it.
	DueAgain time.Time
}

// FailuresUnknown is the value of [History].Failures for a message that was redelivered by an older version of leat, which did
// not count failures. The retry step derives their number from the attempt.
const FailuresUnknown = -1

// A Settler settles a delivery. The bus calls one of its methods, once. Redeliver and GiveBack store the delivery's [History]
// for the next delivery. Ack may return before the message system has processed it. An error means that the message may be
// redelivered.
type Settler interface {
	// Ack ends the delivery: the group is done with the message.
	Ack() error
	// Redeliver ends the delivery and has the message redelivered after the delay. The attempt counts.
	Redeliver(after time.Duration) error
	// GiveBack ends the delivery and has the message redelivered after the delay. The attempt does not count.
	GiveBack(after time.Duration) error
	// Poison moves the message to its group's poison queue and acks it. It returns nil only after the poison queue has
	// confirmed its copy. After an error the delivery is not settled.
	Poison(ctx context.Context, fault Fault) error
}
