package handlers

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// BatchSize configures when the function of [Batch] is called: when Max events have arrived, or when the first one has waited
// for Wait. Zero fields mean 100 and 100 ms.
type BatchSize struct {
	Max  int
	Wait time.Duration
}

// BatchError is an error of some events of a batch, by index. The other events succeed. Any other error fails all events.
type BatchError map[int]error

func (e BatchError) Error() string { return fmt.Sprintf("%d events of the batch failed", len(e)) }

// Batch returns a handler whose function handles several events at once. Each event has passed the stack separately and gets
// its own outcome: a failed event is retried, redelivered and poisoned by itself. The group's concurrency is the batch size,
// unless an option sets more; with twice the size, two batches run at once. The context is that of the first event.
func Batch[T bus.Event](name string, size BatchSize, fn func(context.Context, []T) error, opts ...Option) bus.Handler {
	size.Max = cmp.Or(size.Max, 100)
	size.Wait = cmp.Or(size.Wait, 100*time.Millisecond)
	require(name, fn != nil)
	h := typed(name, []Option{Concurrency(size.Max)}, func() typedFunc[T] {
		c := &collector[T]{size: size, fn: fn}
		return func(ctx context.Context, _ bus.Encoder, e T) ([]*message.Message, error) {
			return nil, c.add(ctx, e)
		}
	})
	return with(h, opts)
}

// collector collects the events of concurrent deliveries. The goroutine of the delivery that begins a batch waits until the
// batch is full or its time is over, and calls the function. The others wait for the result.
type collector[T bus.Event] struct {
	size BatchSize
	fn   func(context.Context, []T) error

	mu   sync.Mutex
	open *batch[T] // the batch that is being collected; nil between batches
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

// join adds an event to the open batch and returns its index.
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
	case <-stopping: // no more events will come
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

// run calls the function. A panic fails every event of the batch with the same [bus.PanicError], so that the circuit breaker
// takes none of them for an outage.
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
	if failed, ok := b.err.(BatchError); ok { //nolint:errorlint // a wrapped BatchError fails all events
		return failed[i]
	}
	return b.err
}
