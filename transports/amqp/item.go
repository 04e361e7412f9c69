package amqp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// item is a message that the broker delivered to an unordered group, and its way back: a [driver.Settler].
type item struct {
	received
	feed    *feed
	session *session
}

// handOut makes the delivery.
func (it *item) handOut() *driver.Delivery { return it.received.handOut(it) }

// again is the item for one more hand-over of the same delivery.
func (it *item) again(attempts int) *item {
	next := &item{feed: it.feed, session: it.session}
	next.repeat(&it.received, attempts)
	return next
}

// errLate is for deliveries whose connection was lost.
var errLate = errors.New("the connection was lost before the message was settled")

func (r *received) late() error {
	return fmt.Errorf("amqp: group %q: message %s: %w", r.group, driver.MessageID(&r.msg), errLate)
}

// Ack does not wait for the broker. Acks are sent together, most within 5 ms.
func (it *item) Ack() error {
	acked := it.session.acks.ack(it.raw.DeliveryTag)
	if it.crashes > 0 {
		it.session.acks.hurry() // before the next can crash the process
	}
	it.feed.finish()
	if !acked {
		return it.late()
	}
	return nil
}

// Redeliver counts an attempt. A redelivery that is due at once stays in this process; a later one is
// confirmed by the broker, in the background, before the delivery is acked.
func (it *item) Redeliver(after time.Duration) error { return it.feed.back(it, it.attempts+1, after) }

// GiveBack counts nothing.
func (it *item) GiveBack(after time.Duration) error { return it.feed.back(it, it.attempts, after) }

// Poison waits until the poison queue has confirmed its copy.
func (it *item) Poison(ctx context.Context, fault driver.Fault) error {
	if err := it.t.deliver(ctx, it.poisoned(fault, it.queue, it.t.publishing.frame())); err != nil {
		return fmt.Errorf("amqp: poison queue of group %q: %w", it.group, err)
	}
	return it.Ack()
}
