package queue

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

// Bundles delivers the messages of a [PrivateGroup] in bundles: all of one claim at once. Next may be called concurrently: no two
// bundles have messages of the same key queues.
type Bundles struct{ receiver *receiver }

// Receive registers a consumer of the group, whose bundles have up to size messages. It blocks until the database can be reached or ctx
// is done. It returns [driver.ErrClosed] if the transport is closed.
func (g *PrivateGroup) Receive(ctx context.Context, size int) (*Bundles, error) {
	f, err := g.core.join(ctx, driver.Subscription{Group: g.group.name, Concurrency: size, Order: driver.OrderedByKey})
	if err != nil {
		return nil, err
	}
	f.bundle = size
	return &Bundles{f}, g.core.begin(f, []string{">"})
}

// Close gives back the unsettled messages and ends the lease, as [driver.Receiver] does.
func (b *Bundles) Close(ctx context.Context) error { return b.receiver.Close(ctx) }

// Next blocks until there are messages, and returns all of one claim. It returns ctx's error, or [driver.ErrClosed] after Close.
func (b *Bundles) Next(ctx context.Context) ([]*Delivery, error) {
	f := b.receiver
	f.waiting.Add(1)
	f.poke()
	defer f.poke()
	defer f.waiting.Add(-1)
	select {
	case d := <-f.buffer:
		bundle := append([]*Delivery{d}, d.behind...)
		f.handed.Add(int64(len(bundle)))
		return bundle, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.ctx.Done():
		return nil, driver.ErrClosed
	}
}
