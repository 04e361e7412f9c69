package amqp

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// What is written: copies of messages that can't go on, stones, and notes, in their order and many at once.
// What a copy was made of is acked when the broker has confirmed the copy.

// transfer is a publishing on its way. settled is called with the feed's mu held, once: ok says that the
// broker has confirmed it.
type transfer struct {
	out     *outgoing
	settled func(ok bool)
}

// rewrite makes the entry one that is on its way.
func (h *held) rewrite(e *entry) {
	h.drop(e)
	e.rev++
	e.tag, e.out, e.stone, e.doubt, e.until = 0, false, false, false, time.Time{}
}

// renew writes a message that came to its place anew, as the same revision.
func (h *held) renew(e *entry, d *amqp.Delivery) {
	old := e.tag
	e.tag = 0
	h.send(transfer{&outgoing{key: h.name(), msg: renewed(d)}, func(ok bool) {
		if ok {
			h.ack(old)
		}
	}})
}

// keep holds back a delivery, and its key, until its time. The caller holds the feed's mu.
func (h *held) keep(it *item, attempts int, after time.Duration) {
	e := it.held
	if e == nil {
		e = h.add(it.key, it.raw)
	} else {
		h.rewrite(e)
	}
	e.until = time.Now().Add(after)
	h.setAside(it.key)
	h.leaves(it)
	h.send(transfer{h.message(it, e, attempts), func(ok bool) {
		if ok {
			h.settle(it)
		}
		h.feed.settled(it)
	}})
	h.relieve(it.key)
}

// leaves announces the ack of what a copy is made of.
func (h *held) leaves(it *item) {
	if it.held == nil {
		h.session.acks.expect(it.raw.DeliveryTag)
	}
}

// settle acks what a copy was made of.
func (h *held) settle(it *item) {
	if it.held != nil {
		h.ack(it.raw.DeliveryTag)
	} else {
		h.session.acks.ack(it.raw.DeliveryTag)
	}
}

// message is the copy of an item for its place.
func (h *held) message(it *item, e *entry, attempts int) *outgoing {
	p := it.copy(attempts)
	p.Headers[headerTopic] = topicOf(it.raw, it.queue, &h.feed.t.cfg)
	place{it.key, e.place, e.rev}.set(p.Headers)
	if !e.until.IsZero() {
		p.Headers[headerHeldUntil] = e.until.UnixMicro()
	}
	if e.print != 0 {
		p.Headers[headerHeldPrint] = int64(e.print) //nolint:gosec // and back
	}
	fit(&p, h.feed.t.publishing.frame()-brokersRoom)
	return &outgoing{key: h.name(), msg: p}
}

// relieve moves what waits here behind held messages to them, when it would be here for long or takes
// too much of what can be fetched from the group's queue. A strictly ordered group fetches no more than
// one that waits. The caller holds the feed's mu.
func (h *held) relieve(key string) {
	f, k := h.feed, h.keys[key]
	if k == nil || f.sub.Order == driver.OrderedStrictly {
		return
	}
	first := k.entries[0]
	if first.stone || time.Until(first.until) > heldSoon || f.behind > f.prefetch/4 {
		h.spill(key)
	}
}

func (h *held) spill(key string) {
	f := h.feed
	lane := f.lanes[key]
	if h.keys[key] == nil || h.keys[key].entries[0].early || len(lane.items) == 0 || f.closed {
		return
	}
	for _, it := range lane.items {
		e := h.add(key, it.raw)
		h.leaves(it)
		h.send(transfer{h.message(it, e, it.attempts), func(ok bool) {
			if ok {
				h.settle(it)
			}
		}})
	}
	f.behind -= len(lane.items)
	lane.items = nil
	f.lanes[key] = lane
}

// park puts a delivery into the poison queue and a stone into its place. It waits for both.
func (h *held) park(ctx context.Context, it *item, fault driver.Fault) error {
	f := h.feed
	f.mu.Lock()
	e := it.held
	if e == nil {
		e = h.add(it.key, it.raw)
	} else {
		h.rewrite(e)
	}
	e.stone, e.early = true, true // an operator may be faster than its copy
	h.setAside(it.key)
	h.leaves(it)
	headers := make(amqp.Table)
	place{it.key, e.place, e.rev}.set(headers)
	f.mu.Unlock()

	if err := f.t.toPoison(ctx, it, fault, headers); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		h.unpark(it, e)
		return err
	}
	headers[headerHeldNote] = noteStone
	if e.print != 0 {
		headers[headerHeldPrint] = int64(e.print) //nolint:gosec // and back
	}
	written := make(chan bool, 1)
	f.mu.Lock()
	e.early = false
	h.send(transfer{
		&outgoing{key: h.name(), msg: amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: it.raw.MessageId, Headers: headers}},
		func(ok bool) {
			if ok {
				h.settle(it)
				f.settled(it)
			}
			written <- ok
		},
	})
	h.relieve(it.key)
	f.mu.Unlock()
	if !<-written {
		return it.late()
	}
	return nil
}

// unpark is for a delivery that did not reach the poison queue.
func (h *held) unpark(it *item, e *entry) {
	e.early = false
	if e.skip != 0 {
		h.ack(e.skip)
		e.skip = 0
	}
	if it.held == nil {
		h.remove(it.key, e)
		return
	}
	e.stone, e.out, e.tag = false, true, it.raw.DeliveryTag
	e.rev--
}

// send queues a transfer. The caller holds the feed's mu.
func (h *held) send(x transfer) {
	if x.settled == nil {
		x.settled = func(bool) {}
	}
	if h.dead {
		x.settled(false)
		return
	}
	h.transfers = append(h.transfers, x)
	select {
	case h.work <- struct{}{}:
	default:
	}
}

// run publishes transfers in their order, many at once.
func (h *held) run() {
	for {
		select {
		case <-h.work:
		case <-h.over:
			h.abort()
			return
		}
		h.feed.mu.Lock()
		batch := h.transfers
		h.transfers = nil
		h.feed.mu.Unlock()
		if err := h.publish(batch); err != nil {
			h.fail(err)
			h.abort()
			return
		}
	}
}

func (h *held) publish(batch []transfer) error {
	out := make([]*outgoing, len(batch))
	for i, x := range batch {
		out[i] = x.out
	}
	pending, err := h.lane.send(h.feed.life, h.feed.link(), out)
	if err == nil && len(pending) > 0 {
		err = errors.New("the connection was lost")
	}
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	ok := true // what was confirmed behind one that was not is not done either: the order would be another
	for _, x := range batch {
		ok = ok && x.out.confirmed && !x.out.unroutable
		if err == nil && !ok {
			err = fmt.Errorf("queue %q is not there", x.out.key)
		}
		x.settled(ok)
	}
	return err
}

// abort gives up what is left.
func (h *held) abort() {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.dead = true
	for _, x := range h.transfers {
		x.settled(false)
	}
	h.transfers = nil
}
