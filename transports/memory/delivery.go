package memory

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// deliver returns a delivery of an item. Its message is a copy for the handler; only the payload's bytes are shared.
func (g *group) deliver(it *item) *driver.Delivery {
	h := &delivery{group: g, item: it}
	h.msg.UUID = it.msg.UUID
	h.msg.Payload = it.msg.Payload
	h.msg.Metadata = maps.Clone(it.msg.Metadata)
	if h.msg.Metadata == nil {
		h.msg.Metadata = message.Metadata{}
	}
	if it.untracked {
		delete(h.msg.Metadata, driver.HeaderInstance)
	}
	d := &h.Delivery
	d.Message = &h.msg
	d.Topic = it.topic
	d.Group = g.name
	d.Attempt = it.attempts + 1
	d.Fence = it.fence
	d.FirstSeen = it.since
	d.History = it.history
	d.Settler = h
	return d
}

// delivery is the [driver.Settler] of one delivery.
type delivery struct {
	driver.Delivery
	msg   message.Message
	group *group
	item  *item
}

func (d *delivery) Ack() error {
	d.group.mu.Lock()
	defer d.group.mu.Unlock()
	d.group.done(d.item)
	return nil
}

func (d *delivery) Redeliver(after time.Duration) error {
	d.item.attempts++
	return d.GiveBack(after)
}

func (d *delivery) GiveBack(after time.Duration) error {
	d.item.history = d.History
	d.group.mu.Lock()
	defer d.group.mu.Unlock()
	d.group.giveBack(d.item, after)
	return nil
}

func (d *delivery) Poison(_ context.Context, fault driver.Fault) error {
	g, it := d.group, d.item
	headers := maps.Clone(it.msg.Metadata)
	if headers == nil {
		headers = message.Metadata{}
	}
	fault.Record(headers)
	g.mu.Lock()
	defer g.mu.Unlock()
	x := &poisoned{seq: it.seq}
	if err := g.poison.put(x, it.msg.UUID, it.topic, headers, it.msg.Payload); err != nil {
		return fmt.Errorf("memory: group %q: %w", g.name, err)
	}
	g.hold(x, it.key)
	g.done(it)
	return nil
}
