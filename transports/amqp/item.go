package amqp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// item is a message that the broker delivered, and its way back: a [driver.Settler].
type item struct {
	delivery driver.Delivery
	msg      message.Message

	feed     *feed
	session  *session
	raw      *amqp.Delivery
	queue    string         // where it came from
	attempts int            // hand-overs that counted, before this one
	crashes  int            // those of them that nobody settled
	history  driver.History // its failures, in earlier deliveries
	key      string         // order is kept within it; "" where none is asked for
	heads    bool           // it holds its key: it is ready, handed out or waits for its redelivery
	held     *entry         // its place, where it came from the queue of held messages
	read     bool           // msg is filled
	seen     bool           // it was handed out before, and waits for a redelivery in this process
	counted  bool           // with an attempt that the broker does not know of
	unseen   int            // deliveries that the broker counted, and that were none
}

// suspect reports whether the message was in so many crashes that it may be the cause.
func (it *item) suspect() bool { return it.crashes >= suspicion }

// unpack reads the message, once.
func (it *item) unpack() {
	if !it.read {
		unmarshal(&it.msg, it.raw, it.feed.t.cfg.ownKey)
		if noted := driver.TakeHistory(it.msg.Metadata); it.history == (driver.History{}) {
			it.history = noted
		}
		it.read = true
	}
}

// handOut makes the delivery.
func (it *item) handOut() *driver.Delivery {
	it.unpack()
	d := &it.delivery
	d.Message = &it.msg
	d.Topic = topicOf(it.raw, it.queue, &it.feed.t.cfg)
	d.Group = it.feed.sub.Group
	d.Attempt = it.attempts + 1
	d.FirstSeen = firstSeen(it.raw)
	d.History = it.history
	d.Settler = it
	d.FixedDelays = it.key == ""
	d.Unreadable = unreadable(it.raw)
	return d
}

// again is the item for one more hand-over of the same delivery.
func (it *item) again(attempts int) *item {
	return &item{
		feed: it.feed, session: it.session, raw: it.raw, queue: it.queue,
		attempts: attempts, crashes: it.crashes, history: it.delivery.History, key: it.key, heads: it.heads, held: it.held, seen: true,
		counted: it.counted || attempts > it.attempts,
	}
}

// errLate is for deliveries whose connection was lost.
var errLate = errors.New("the connection was lost before the message was settled")

func (it *item) late() error {
	return fmt.Errorf("amqp: group %q: message %s: %w", it.feed.sub.Group, driver.MessageID(&it.msg), errLate)
}

// Ack does not wait for the broker. Acks are sent together, most within 5 ms.
func (it *item) Ack() error {
	acked := it.settle()
	it.feed.finish(it)
	if !acked {
		return it.late()
	}
	return nil
}

// settle acks the message, and reports false when its channel is gone.
func (it *item) settle() bool {
	if it.held != nil {
		return it.session.held.done(it)
	}
	acked := it.session.acks.ack(it.raw.DeliveryTag)
	if it.crashes > 0 {
		it.session.acks.hurry() // before the next can crash the process
	}
	return acked
}

// Redeliver counts an attempt. A redelivery that is due at once stays in this process; a later one is
// confirmed by the broker, in the background, before the delivery is acked.
func (it *item) Redeliver(after time.Duration) error { return it.feed.back(it, it.attempts+1, after) }

// GiveBack counts nothing.
func (it *item) GiveBack(after time.Duration) error { return it.feed.back(it, it.attempts, after) }

// Poison waits until the poison queue has confirmed its copy.
func (it *item) Poison(ctx context.Context, fault driver.Fault) error {
	f := it.feed
	if it.key != "" && f.parks() && !it.session.isOver() {
		if err := it.session.held.park(ctx, it, fault); err != nil {
			return fmt.Errorf("amqp: poison queue of group %q: %w", f.sub.Group, err)
		}
		return nil
	}
	if err := f.t.toPoison(ctx, it, fault, nil); err != nil {
		return fmt.Errorf("amqp: poison queue of group %q: %w", f.sub.Group, err)
	}
	return it.Ack()
}

// copy is the item as a message of its own, with its attempts in a header.
func (it *item) copy(attempts int) amqp.Publishing {
	it.unpack()
	p := copyOf(it.raw, topicOf(it.raw, it.queue, &it.feed.t.cfg))
	p.Headers[headerAttempt] = int32(min(attempts, 1<<30)) //nolint:gosec // bounded
	delete(p.Headers, headerCrashes)
	history := it.history
	if it.delivery.Message != nil { // it was handed out
		history = it.delivery.History
	}
	for _, name := range []string{driver.HeaderFaultFailedAt, driver.HeaderFaultFailures, driver.HeaderFaultWaiting} {
		delete(p.Headers, name)
	}
	noted := make(message.Metadata, 3)
	driver.SetHistory(noted, history)
	setText(p.Headers, noted)
	if it.crashes > 0 {
		p.Headers[headerCrashes] = int32(min(it.crashes, 1<<30))
	}
	if p.MessageId == "" && len(it.msg.UUID) <= maxNameBytes {
		p.MessageId = it.msg.UUID
	}
	return p
}
