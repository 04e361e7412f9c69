package handlers

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// BatchSize says when a batch is handed over: when it has Max events, or when its first one has waited
// for Wait. Zero fields mean 100 and 100 ms.
type BatchSize struct {
	Max  int
	Wait time.Duration
}

// BatchError fails some events of a batch and lets the others succeed, by index. A plain error fails
// all of them.
type BatchError map[int]error

func (e BatchError) Error() string { return fmt.Sprintf("%d events of the batch failed", len(e)) }

// Batch makes a handler that takes events together. Each event has gone through the stack on its own
// and gets its own outcome: what fails is retried, redelivered and poisoned one by one. The group's
// concurrency is the batch size unless an option says more; twice the size lets two batches run
// beside each other. The context is that of the first event of the batch.
func Batch[T bus.Event](name string, size BatchSize, fn func(context.Context, []T) error, opts ...Option) bus.Handler {
	if size.Max == 0 {
		size.Max = 100
	}
	if size.Wait == 0 {
		size.Wait = 100 * time.Millisecond
	}
	require(name, fn != nil)
	h := typed(name, []Option{Concurrency(size.Max)}, func() typedFunc[T] {
		c := &collector[T]{size: size, fn: fn}
		return func(ctx context.Context, _ bus.Encoder, e T) ([]*message.Message, error) {
			return nil, c.add(ctx, e)
		}
	})
	return with(h, opts)
}

// collector gathers the events of concurrent deliveries. The delivery that begins a batch leads it:
// it waits until the batch is full or old, runs it, and tells the others.
type collector[T bus.Event] struct {
	size BatchSize
	fn   func(context.Context, []T) error

	mu   sync.Mutex
	open *batch[T] // the one that takes events; nil between batches
}

type batch[T bus.Event] struct {
	events     []T
	deliveries []*bus.Delivery // of the events, if there is a bus
	full       chan struct{}
	done       chan struct{}
	err        error
}

func (c *collector[T]) add(ctx context.Context, e T) error {
	b, i := c.join(bus.DeliveryFrom(ctx), e)
	if i > 0 {
		<-b.done
		return b.outcome(i)
	}
	c.waitFull(ctx, b)
	c.closeBatch(b)
	c.run(ctx, b)
	return b.outcome(0)
}

// join puts an event into the open batch and returns its place there.
func (c *collector[T]) join(d *bus.Delivery, e T) (b *batch[T], i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = &batch[T]{full: make(chan struct{}), done: make(chan struct{})}
	}
	b = c.open
	b.events = append(b.events, e)
	if d != nil {
		b.deliveries = append(b.deliveries, d)
	}
	if len(b.events) == c.size.Max {
		close(b.full)
		c.open = nil
	}
	return b, len(b.events) - 1
}

func (c *collector[T]) waitFull(ctx context.Context, b *batch[T]) {
	timer := time.NewTimer(c.size.Wait)
	defer timer.Stop()
	var stopping <-chan struct{}
	if d := bus.DeliveryFrom(ctx); d != nil {
		stopping = d.Stopping()
	}
	select {
	case <-b.full:
	case <-timer.C:
	case <-stopping: // no more will come
	case <-ctx.Done():
	}
}

func (c *collector[T]) closeBatch(b *batch[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == b {
		c.open = nil
	}
}

// run calls the function. A panic fails every event of the batch with the same [bus.PanicError], so that none
// of them looks like an outage.
func (c *collector[T]) run(ctx context.Context, b *batch[T]) {
	defer close(b.done)
	defer func() {
		if v := recover(); v != nil {
			if d := bus.DeliveryFrom(ctx); d != nil {
				d.Panicked()
			}
			b.err = driver.NewPanicError(v)
		}
	}()
	b.err = fmt.Errorf("batch of %d events: %w", len(b.events), bus.ErrGoexit)
	if len(b.deliveries) > 0 {
		inner, end := b.deliveries[0].Batching(ctx, b.deliveries)
		defer func() { end(b.err) }()
		ctx = inner
	}
	b.err = c.fn(ctx, b.events)
}

func (b *batch[T]) outcome(i int) error {
	if failed, ok := b.err.(BatchError); ok { //nolint:errorlint // a wrapped one would be a plain error on purpose
		return failed[i]
	}
	return b.err
}
