package admin

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
)

// LocalDryRunner tries poisoned messages with a service's own handlers, and undoes it: transactions of handlers.Tx
// are rolled back, and what is published with the handler's context is held back. Nothing is claimed,
// retried, counted or poisoned. Its methods may be called concurrently.
type LocalDryRunner struct {
	bus   *bus.Bus
	stack middleware.Stack
}

// NewLocalDryRunner returns a runner of the handlers that are registered with the bus, in their stack.
func NewLocalDryRunner(b *bus.Bus, stack middleware.Stack) *LocalDryRunner {
	return &LocalDryRunner{b, stack}
}

// A DryRunner tries poisoned messages and undoes it. It is a service's own process, or a [Client] of its endpoint.
type DryRunner interface {
	// Undoes reports whether everything is undone that the group's handler does, apart from what it
	// does outside of its context.
	Undoes(ctx context.Context, group string) (bool, error)
	// DryRun tries messages of a group and returns how each went, in their order.
	DryRun(ctx context.Context, group string, msgs []driver.PoisonedMessage) ([]DryRunResult, error)
}

var (
	_ DryRunner = (*LocalDryRunner)(nil)
	_ DryRunner = (*Client)(nil)
)

// DryRunResult is how one message would have gone, also in JSON.
type DryRunResult struct {
	ID        string `json:"id"`              // the message's place in the queue
	Error     string `json:"error,omitempty"` // "" where the handler would succeed now
	Class     string `json:"class,omitempty"` // of the error
	Published int    `json:"published"`       // messages that the handler would have published
}

// Undoes implements [DryRunner].
func (r *LocalDryRunner) Undoes(_ context.Context, group string) (bool, error) {
	h, err := r.handler(group)
	return h.Undoable, err
}

// DryRun tries as many at once as the handler handles.
func (r *LocalDryRunner) DryRun(ctx context.Context, group string, msgs []driver.PoisonedMessage) ([]DryRunResult, error) {
	h, err := r.handler(group)
	if err != nil {
		return nil, err
	}
	fn, err := r.function(h)
	if err != nil {
		return nil, err
	}
	results := make([]DryRunResult, len(msgs))
	workers := h.Concurrency
	if h.Order != driver.Unordered {
		workers = 1
	}
	next := make(chan int)
	var working sync.WaitGroup
	for range max(workers, 1) {
		working.Go(func() {
			for i := range next {
				results[i] = dryRun(ctx, fn, group, msgs[i])
			}
		})
	}
	for i := range msgs {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	working.Wait()
	return results, ctx.Err()
}

func (r *LocalDryRunner) handler(group string) (bus.Handler, error) {
	if o := r.bus.Outbox(); o != nil && group == o.Group() {
		return bus.Handler{}, fmt.Errorf("%s: an outbox has no handler that could be tried; a replay hands its messages to the relay again", group)
	}
	names := []string{}
	for _, h := range r.bus.Handlers() {
		if r.bus.GroupName(h.Name) == group {
			return h, nil
		}
		names = append(names, r.bus.GroupName(h.Name))
	}
	return bus.Handler{}, &UnknownGroupError{Group: group, Nearest: nearestGroup(group, names)}
}

// function returns the handler in its stack, but for the steps that would change something.
func (r *LocalDryRunner) function(h bus.Handler) (message.HandlerFunc, error) {
	stack := r.stack
	if h.Stack != nil {
		own, ok := h.Stack.(middleware.Stack)
		if !ok {
			return nil, fmt.Errorf("handler %q has a stack of its own (%T), which can't be taken apart", h.Name, h.Stack)
		}
		stack = own
	}
	for _, step := range []string{middleware.StepObserve, middleware.StepPoison, middleware.StepDedup, middleware.StepRetry} {
		if slices.Contains(stack.Names(), step) {
			stack = stack.Without(step)
		}
	}
	return stack.Wrap(h, h.Bind(r.bus.Encoder()))
}

// maxErrorText bounds an error's text in a result, in bytes.
const maxErrorText = 1024

func dryRun(ctx context.Context, fn message.HandlerFunc, group string, m driver.PoisonedMessage) (result DryRunResult) {
	result.ID = m.ID
	fail := func(err error) {
		result.Error, result.Class = driver.OneLine(err.Error(), maxErrorText), driver.ErrorClass(err)
	}
	defer func() { // where the stack has no recover step
		if v := recover(); v != nil {
			fail(driver.NewPanicError(v))
		}
	}()
	msg := m.Message.Copy()
	driver.ClearFault(msg.Metadata)
	dryRun := new(bus.DryRun)
	d := &bus.Delivery{
		Delivery: driver.Delivery{Message: msg, Topic: m.Topic(), Group: group, Attempt: 1, FirstSeen: m.Fault.FirstAt},
		DryRun:   dryRun, Try: 1,
	}
	msg.SetContext(d.NewContext(ctx))
	produced, err := fn(msg)
	if err != nil && !bus.IsDiscard(err) { // a discarded one is done, too
		fail(err)
	}
	result.Published = len(dryRun.Published()) + len(produced)
	return result
}
