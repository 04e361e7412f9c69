package bus

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// bounded returns ctx bounded by [Config.PublishTimeout], if it has no deadline and is not a handler's.
func (s *sender) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.cfg.PublishTimeout <= 0 || DeliveryFrom(ctx) != nil {
		return ctx, func() {}
	}
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	c := &timeoutContext{Context: ctx, timeout: s.cfg.PublishTimeout, begun: time.Now()}
	return c, c.stop
}

// timeoutContext is a context with a timeout. Its timer is created by the first call of Done, because most publishes never
// wait.
type timeoutContext struct {
	context.Context
	timeout time.Duration
	begun   time.Time

	mu     sync.Mutex
	timed  context.Context // nil before the first call of Done
	cancel context.CancelFunc
}

// withTimer returns the context with the timer, nil before the first call of Done.
func (c *timeoutContext) withTimer() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.timed
}

func (c *timeoutContext) Deadline() (time.Time, bool) { return c.begun.Add(c.timeout), true }

func (c *timeoutContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timed == nil {
		cause := fmt.Errorf("the context has no deadline, and the publish timeout of %s is over: %w", c.timeout, context.DeadlineExceeded)
		c.timed, c.cancel = context.WithDeadlineCause(c.Context, c.begun.Add(c.timeout), cause)
	}
	return c.timed.Done()
}

func (c *timeoutContext) Err() error {
	if timed := c.withTimer(); timed != nil {
		return timed.Err()
	}
	return c.Context.Err()
}

// Value calls the context with the timer if there is one, because context.Cause looks for the cause there.
func (c *timeoutContext) Value(key any) any {
	if timed := c.withTimer(); timed != nil {
		return timed.Value(key)
	}
	return c.Context.Value(key)
}

func (c *timeoutContext) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}
