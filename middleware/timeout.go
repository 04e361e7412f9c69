package middleware

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Timeout cancels a try's context after d. The handler must watch it: one that does not keeps its
// worker, and shows in the bus's health. A handler that succeeds too late has succeeded.
func Timeout(d time.Duration) message.HandlerMiddleware {
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			outer, deadline := msg.Context(), time.Now().Add(d)
			if earlier, ok := outer.Deadline(); ok && !earlier.After(deadline) {
				return next(msg)
			}
			ctx := &deadlineContext{Context: outer, deadline: deadline}
			defer ctx.end()
			msg.SetContext(ctx)
			defer msg.SetContext(outer)

			produced, err := next(msg)
			if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) && outer.Err() == nil {
				return nil, fmt.Errorf("timed out after %s: %w", d, err)
			}
			return produced, err
		}
	}
}

// deadlineContext is context.WithDeadline for handlers that mostly never look: the timer and all
// that belongs to it are made when somebody first asks for Done.
type deadlineContext struct {
	context.Context // the parent
	deadline        time.Time

	mu     sync.Mutex
	real   context.Context // nil until it is needed
	cancel context.CancelFunc
	ended  bool
}

func (c *deadlineContext) Deadline() (time.Time, bool) { return c.deadline, true }

func (c *deadlineContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.materialize().Done()
}

func (c *deadlineContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real == nil && !c.ended && c.Context.Err() == nil && time.Now().Before(c.deadline) {
		return nil
	}
	return c.materialize().Err()
}

// Value answers for the real context where there is one, by which package context recognises it as
// its own and needs no goroutine for its children.
func (c *deadlineContext) Value(key any) any {
	c.mu.Lock()
	holder := c.Context
	if c.real != nil {
		holder = c.real
	}
	c.mu.Unlock()
	return holder.Value(key)
}

// materialize makes the real context. The caller holds c.mu.
func (c *deadlineContext) materialize() context.Context {
	if c.real == nil {
		c.real, c.cancel = context.WithDeadline(c.Context, c.deadline)
		if c.ended {
			c.cancel()
		}
	}
	return c.real
}

// end returns the cancel function of the try.
func (c *deadlineContext) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.cancel != nil {
		c.cancel()
	}
}
