package amqp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// item is a message that the broker has delivered to an unordered group. It is the [driver.Settler] of its delivery.
type item struct {
	received
	receiver *receiver
	session  *session
	outBytes int // counted in the receiver's outBytes
}

// handOut returns the delivery.
func (it *item) handOut() *driver.Delivery { return it.received.handOut(it) }

// again returns an item for a redelivery in this process.
func (it *item) again(attempts int) *item {
	next := &item{receiver: it.receiver, session: it.session}
	next.repeat(&it.received, attempts)
	return next
}

// errLate is the error of settling a delivery whose connection was lost.
var errLate = errors.New("the connection was lost before the message was settled")

func (r *received) late() error {
	return fmt.Errorf("amqp: group %q: message %s: %w", r.group, driver.OneLine(driver.MessageID(&r.msg), driver.MaxClassBytes), errLate)
}

// Ack does not wait for the broker. Acks are batched, and most are sent within 5 ms.
func (it *item) Ack() error {
	acked := it.session.acks.ack(it.raw.DeliveryTag)
	if it.crashes > 0 {
		it.session.acks.hurry() // before the next message can crash the process
	}
	it.receiver.finish(it)
	if !acked {
		return it.late()
	}
	return nil
}

// Redeliver counts an attempt. For a short delay the message stays in this process. For a longer one, a copy is published and confirmed in the
// background before the delivery is acked.
func (it *item) Redeliver(after time.Duration) error {
	return it.receiver.redeliver(it, it.attempts+1, after)
}

// GiveBack counts no attempt.
func (it *item) GiveBack(after time.Duration) error {
	return it.receiver.redeliver(it, it.attempts, after)
}

// Poison blocks until the poison queue has confirmed its copy.
func (it *item) Poison(ctx context.Context, fault driver.Fault) error {
	if err := it.t.publisher.deliver(ctx, it.poisoned(fault, it.queue, it.t.publishing.frame())); err != nil {
		return fmt.Errorf("amqp: poison queue of group %q: %w", it.group, err)
	}
	return it.Ack()
}
