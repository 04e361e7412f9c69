package middleware

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Timeout returns the step that cancels a try's context after d. The handler must watch the context: otherwise it keeps its
// worker, and the bus's health reports it. A handler that returns nil after the timeout has succeeded.
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

// deadlineContext is a context with a deadline. Its timer is created by the first call of Done, because most handlers never
// call it.
type deadlineContext struct {
	context.Context // the parent
	deadline        time.Time

	mu     sync.Mutex
	real   context.Context // nil before the first call of Done
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

// Value calls the real context if there is one. By it package context recognizes a context of its own, whose children need no
// goroutine.
func (c *deadlineContext) Value(key any) any {
	c.mu.Lock()
	holder := c.Context
	if c.real != nil {
		holder = c.real
	}
	c.mu.Unlock()
	return holder.Value(key)
}

// materialize creates the real context. The caller holds c.mu.
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
