package memory

import (
	"context"
	"maps"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// handout makes the delivery: the message is the handler's own, but for the payload's bytes.
func (q *queue) handout(it *item) *driver.Delivery {
	h := &handout{queue: q, item: it}
	h.msg.UUID = it.msg.UUID
	h.msg.Payload = it.msg.Payload
	h.msg.Metadata = maps.Clone(it.msg.Metadata)
	if h.msg.Metadata == nil {
		h.msg.Metadata = message.Metadata{}
	}
	if it.told {
		delete(h.msg.Metadata, driver.HeaderInstance)
	}
	d := &h.delivery
	d.Message = &h.msg
	d.Topic = it.topic
	d.Group = q.group
	d.Attempt = it.attempts + 1
	d.FirstSeen = it.since
	d.History = it.history
	d.Settler = h
	return d
}

// handout is one delivery and its way back.
type handout struct {
	delivery driver.Delivery
	msg      message.Message
	queue    *queue
	item     *item
}

func (h *handout) Ack() error {
	q := h.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done(h.item)
	return nil
}

func (h *handout) Redeliver(after time.Duration) error {
	h.item.attempts++
	return h.GiveBack(after)
}

func (h *handout) GiveBack(after time.Duration) error {
	q := h.queue
	h.item.history = h.delivery.History
	q.mu.Lock()
	defer q.mu.Unlock()
	q.out--
	switch {
	case q.closed:
		q.forgetItem(h.item)
	case after > 0:
		h.item.due = time.Now().Add(after)
		q.hold(h.item)
	case !q.handOver(h.item):
		q.ready.pushFront(h.item) // where it came from
	}
	return nil
}

func (h *handout) Poison(_ context.Context, fault driver.Fault) error {
	q := h.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.keep(h.item, fault); err != nil {
		return err
	}
	q.done(h.item)
	return nil
}

// done ends a message's life in the queue and lets the next of its key go.
func (q *queue) done(it *item) {
	q.out--
	q.forgetItem(it)
	if it.key == "" {
		return
	}
	l := q.lanes[it.key]
	l.headed = false
	q.advance(it.key, l)
}
