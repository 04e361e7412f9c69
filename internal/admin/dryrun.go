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

// A LocalDryRunner tries poisoned messages with a service's own handlers and undoes the effects: it rolls back transactions
// of handlers.Tx, and discards messages that are published with the handler's context. Nothing is claimed,
// retried, counted or poisoned. Its methods may be called concurrently.
type LocalDryRunner struct {
	bus   *bus.Bus
	stack middleware.Stack
}

// NewLocalDryRunner returns a runner of the handlers that are registered with the bus, in their stack.
func NewLocalDryRunner(b *bus.Bus, stack middleware.Stack) *LocalDryRunner {
	return &LocalDryRunner{b, stack}
}

// A DryRunner tries poisoned messages and undoes the effects, in the service's own process or behind a [Client]'s endpoint.
type DryRunner interface {
	// Undoes reports whether all effects of the group's handler are undone, apart from those that do not use its
	// context.
	Undoes(ctx context.Context, group string) (bool, error)
	// DryRun tries messages of a group and returns their results, in order.
	DryRun(ctx context.Context, group string, msgs []driver.PoisonedMessage) ([]DryRunResult, error)
}

var (
	_ DryRunner = (*LocalDryRunner)(nil)
	_ DryRunner = (*Client)(nil)
)

// A DryRunResult is the result for one message. It is also encoded as JSON.
type DryRunResult struct {
	ID        string `json:"id"`              // the message's id in the queue
	Error     string `json:"error,omitempty"` // "" if the handler has succeeded
	Class     string `json:"class,omitempty"` // of the error
	Published int    `json:"published"`       // messages that the handler would have published
}

// Undoes implements [DryRunner].
func (r *LocalDryRunner) Undoes(_ context.Context, group string) (bool, error) {
	h, err := r.handler(group)
	return h.Undoable, err
}

// DryRun implements [DryRunner]. It tries as many messages at once as the handler's concurrency.
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
		return bus.Handler{}, fmt.Errorf("%s: an outbox has no handler; replay its messages to the relay without a dry run", group)
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

// function returns the handler in its stack, without the steps that have effects.
func (r *LocalDryRunner) function(h bus.Handler) (message.HandlerFunc, error) {
	stack := r.stack
	if h.Stack != nil {
		own, ok := h.Stack.(middleware.Stack)
		if !ok {
			return nil, fmt.Errorf("handler %q has its own stack (%T), whose steps are unknown", h.Name, h.Stack)
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

// maxErrorText limits an error's text in a result, in bytes.
const maxErrorText = 1024

func dryRun(ctx context.Context, fn message.HandlerFunc, group string, m driver.PoisonedMessage) (result DryRunResult) {
	result.ID = m.ID
	fail := func(err error) {
		result.Error, result.Class = driver.OneLine(err.Error(), maxErrorText), driver.ErrorClass(err)
	}
	defer func() { // if the stack has no recover step
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
	if err != nil && !bus.IsDiscard(err) { // a discarded message is done
		fail(err)
	}
	result.Published = len(dryRun.Published()) + len(produced)
	return result
}
