package amqp

import (
	"context"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// orderedItem is a delivery of the broker to a session of an ordered group, and when it is handed out, its way back: a
// [driver.Settler]. The feed's mu guards it.
type orderedItem struct {
	received
	s      *orderedSession
	from   *orderedConsumer
	tag    ordered.Tag
	key    string
	fence  uint64
	out    bool // a worker has it
	fault  driver.Fault
	judged bool       // its count of crashes is as it should be
	copied chan error // of a message that is being poisoned: nil when it is acked
}

func newOrderedItem(s *orderedSession, from *orderedConsumer, raw *amqp.Delivery) *orderedItem {
	f := s.feed
	distrust(raw)
	it := &orderedItem{s: s, from: from}
	it.receive(f.t, f.sub.Group, from.queue, raw)
	if raw.Headers[headerNote] == nil {
		it.unpack()
		it.key = orderKey(f.sub.Order, driver.PartitionKey(&it.msg))
	}
	return it
}

// message is what the machine knows of the delivery.
func (it *orderedItem) message() *ordered.Message {
	h := it.raw.Headers
	head, _ := h[headerHead].(string)
	note, _ := h[headerNote].(string)
	repeat, _ := h[headerRepeat].(bool)
	key := it.key
	if note != "" {
		partitionKey, _ := h[driver.HeaderPartitionKey].(string)
		key = orderKey(it.s.feed.sub.Order, partitionKey)
	}
	return &ordered.Message{
		Tag: it.tag, Key: key, Print: printOf(it.raw), Size: len(it.raw.Body) + messageOverhead,
		Redelivered: it.raw.Redelivered || repeat, Control: ordered.Control(note), Head: head,
		Name: nameIn(h, headerName), Seq: nameIn(h, headerSeq), Stamp: nameIn(h, headerStamp),
	}
}

func (it *orderedItem) handOut() *driver.Delivery {
	it.delivery.Fence = it.fence
	return it.received.handOut(it)
}

// again is the item for one more hand-over of the same delivery.
func (it *orderedItem) again(attempts int) *orderedItem {
	next := &orderedItem{s: it.s, from: it.from, tag: it.tag, key: it.key, fault: it.fault, judged: true}
	next.repeat(&it.received, attempts)
	return next
}

// Ack does not wait for the broker.
func (it *orderedItem) Ack() error {
	return it.settle(func(now time.Time) { it.s.machine.Handled(now, it.tag) })
}

// Redeliver counts an attempt. A long delay outlives this process: the broker has it.
func (it *orderedItem) Redeliver(after time.Duration) error { return it.back(it.attempts+1, after) }

// GiveBack counts nothing.
func (it *orderedItem) GiveBack(after time.Duration) error { return it.back(it.attempts, after) }

func (it *orderedItem) back(attempts int, after time.Duration) error {
	return it.settle(func(now time.Time) {
		if _, here := it.s.items[it.tag]; here {
			it.s.items[it.tag] = it.again(attempts)
		}
		it.s.machine.Failed(now, it.tag, after)
	})
}

// settle reports what has become of the message. A session that is over only learns that the worker is done with it.
func (it *orderedItem) settle(report func(now time.Time)) error {
	f := it.s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	report(time.Now())
	f.leave(it)
	over := it.s.over
	f.act()
	if over {
		return it.late()
	}
	return nil
}

// Poison waits until the poison queue has confirmed its copy, and the group's log, in a group that parks, that the key
// waits for it.
func (it *orderedItem) Poison(ctx context.Context, fault driver.Fault) error {
	f := it.s.feed
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
