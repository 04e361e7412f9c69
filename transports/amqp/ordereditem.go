package amqp

import (
	"context"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// An orderedItem is a delivery of the broker to a session of an ordered group, and the [driver.Settler] of its delivery to a
// handler. The receiver's mu guards it.
type orderedItem struct {
	received
	s       *orderedSession
	from    *orderedConsumer
	tag     ordered.Tag
	key     string
	fence   uint64
	out     bool // a worker has it
	given   bool // a worker has it or had it, and may look at its body
	fault   driver.Fault
	checked bool       // its count of crashes was corrected
	copied  chan error // gets the result for a message that is being poisoned: nil when it is acked
	print   ordered.Print
	waits   int // bytes that are counted as waiting in memory
}

func newOrderedItem(s *orderedSession, from *orderedConsumer, raw *amqp.Delivery) *orderedItem {
	f := s.receiver
	dropForeignHeaders(raw)
	it := &orderedItem{s: s, from: from, print: printOf(raw)}
	it.receive(f.t, f.sub.Group, from.queue, raw)
	if raw.Headers[headerControl] == nil {
		it.unpack()
		it.key = orderKey(f.sub.Order, driver.PartitionKey(&it.msg))
	}
	return it
}

// message returns the delivery as the machine needs it.
func (it *orderedItem) message() *ordered.Message {
	h := it.raw.Headers
	head, _ := h[headerHead].(string)
	control, _ := h[headerControl].(string)
	repeat, _ := h[headerRepeat].(bool)
	key := it.key
	if control != "" {
		partitionKey, _ := h[driver.HeaderPartitionKey].(string)
		key = orderKey(it.s.receiver.sub.Order, partitionKey)
	}
	return &ordered.Message{
		Tag: it.tag, Key: key, Print: it.print, Size: min(it.bytes, leastSpilled) + messageOverhead,
		Redelivered: it.raw.Redelivered || repeat, Control: ordered.Control(control), Head: head,
		Name: nameIn(h, headerName), Seq: nameIn(h, headerSeq), Stamp: nameIn(h, headerStamp),
	}
}

func (it *orderedItem) handOut() *driver.Delivery {
	it.delivery.Fence = it.fence
	return it.received.handOut(it)
}

// again returns an item for a redelivery in this process.
func (it *orderedItem) again(attempts int) *orderedItem {
	next := &orderedItem{s: it.s, from: it.from, tag: it.tag, key: it.key, fault: it.fault, checked: true, print: it.print}
	next.repeat(&it.received, attempts)
	return next
}

// Ack does not wait for the broker.
func (it *orderedItem) Ack() error {
	return it.settle(func(now time.Time) { it.s.machine.Handled(now, it.tag) })
}

// Redeliver counts an attempt. For a long delay the message waits in the broker.
func (it *orderedItem) Redeliver(after time.Duration) error { return it.back(it.attempts+1, after) }

// GiveBack counts no attempt.
func (it *orderedItem) GiveBack(after time.Duration) error { return it.back(it.attempts, after) }

func (it *orderedItem) back(attempts int, after time.Duration) error {
	return it.settle(func(now time.Time) {
		if _, here := it.s.items[it.tag]; here {
			it.s.items[it.tag] = it.again(attempts)
		}
		it.s.machine.Failed(now, it.tag, after)
	})
}

// settle reports the outcome to the machine. It returns an error if the session is over.
func (it *orderedItem) settle(report func(now time.Time)) error {
	f := it.s.receiver
	f.mu.Lock()
	report(time.Now())
	f.leave(it)
	over := it.s.over
	f.act()
	toFile := it.s.bodies.keepAgain(it)
	f.mu.Unlock()
	if toFile != nil {
		it.s.bodies.toFile(toFile)
	}
	if over {
		return it.late()
	}
	return nil
}

// Poison blocks until the poison queue has confirmed its copy, and in a group that parks, the log has confirmed the record that
// blocks the key.
func (it *orderedItem) Poison(ctx context.Context, fault driver.Fault) error {
	f := it.s.receiver
	f.mu.Lock()
	if it.s.over {
		f.mu.Unlock()
		return it.late()
	}
	copied := make(chan error, 1)
	it.fault, it.copied = fault, copied
	it.s.machine.Poisoned(time.Now(), it.tag)
	f.act()
	f.mu.Unlock()
	var err error
	select {
	case err = <-copied:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("amqp: poison queue of group %q: %w", it.group, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leave(it)
	f.act()
	return nil
}
