package amqp

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus"
)

// Who leads an ordered group: the process that has the baton. It learns what is held before it hands out
// anything, and says goodbye when it stops.

// lead takes a baton in.
func (h *held) lead(d *amqp.Delivery) {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.seen++
	if h.baton != 0 {
		_ = h.ch.Ack(d.DeliveryTag, false)
		return
	}
	h.baton = d.DeliveryTag
	if !h.won {
		h.won = true
		h.elected <- struct{}{}
	}
}

// alone waits until the last leader's consumer is gone from the queue of held messages, and what it had is
// back there: the queue may notice its end later than that of the batons does. A consumer that stays is
// not leat's, or one of a node that is away, whose messages are back.
func (h *held) alone() error {
	for began := time.Now(); ; {
		q, err := h.ch.QueueDeclarePassive(h.name(), durable, autoDelete, exclusive, noWait, nil)
		if err != nil || q.Consumers == 0 {
			return err
		}
		if time.Since(began) > heldAlone {
			h.feed.t.cfg.Logger.Warn("leat: amqp: somebody else consumes the held messages of a group; the order of its keys is not sure",
				"group", h.feed.sub.Group, "queue", h.name(), "consumers", q.Consumers)
			return nil
		}
		select {
		case <-time.After(lockPause):
		case <-h.over:
			return nil
		}
	}
}

// scan begins to learn what is held.
func (h *held) scan() error {
	if err := h.alone(); err != nil {
		return err
	}
	h.feed.mu.Lock()
	h.consumers = 1
	h.feed.mu.Unlock()
	if err := h.consume(h.name(), h.arrive); err != nil {
		return err
	}
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.nonce = bus.NewID()
	h.send(transfer{out: h.note(noteScan, h.nonce)})
	return nil
}

// know ends the scan.
func (h *held) know() {
	h.complete = true
	peaceful := len(h.peace) > 0
	for _, tag := range h.peace {
		h.ack(tag)
	}
	h.peace = nil
	h.applySkips()
	for key, k := range h.keys {
		if !h.feed.parks() {
			h.release(key)
		}
		if h.keys[key] == nil {
			continue
		}
		if _, taken := h.feed.lanes[key]; !taken {
			h.feed.lanes[key] = keyLane{}
		}
		first := k.entries[0]
		first.doubt = !first.stone && !peaceful && !first.until.After(time.Now()) &&
			(h.doubtful == nil || h.doubtful[first.place])
	}
	h.scanned <- struct{}{}
}

// serve begins to hand out.
func (h *held) serve() {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.leads = true
	for key := range h.keys {
		h.resume(key)
	}
	h.feed.dispatch()
}

// farewell is the last that a leader does. It waits for the acks of what was not held, and tells the next
// leader that nothing of what is held was out. The note is confirmed behind the acks of what was held.
func (h *held) farewell() error {
	f := h.feed
	f.mu.Lock()
	leads := h.leads
	f.mu.Unlock()
	if !leads {
		return nil
	}
	if err := h.session.acked(); err != nil {
		return err
	}
	sent := make(chan struct{})
	f.mu.Lock()
	h.send(transfer{h.note(notePeace, bus.NewID()), func(bool) { close(sent) }})
	f.mu.Unlock()
	select {
	case <-sent:
	case <-f.life.Done():
	case <-time.After(lastWords):
	}
	return nil
}
