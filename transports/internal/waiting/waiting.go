// Package waiting passes the items of a queue to the calls that wait for them.
package waiting

import (
	"context"
	"slices"
	"sync"

	"github.com/leatbus/leat/bus/driver"
)

// Calls has the calls of Next that wait for an item of a queue. The queue's mutex guards it: Next locks the mutex, and all other
// methods are called with it held.
//
// One call is woken at a time, and it wakes the next one if there are more items. So a burst of items costs its publisher one
// wake-up, and is handled by as many goroutines as it needs.
type Calls[T any] struct {
	mu     *sync.Mutex
	take   func() (T, bool)
	calls  []chan T // a stack: the last call is served first, because its data is most likely in the CPU's cache
	waking bool     // a call got an item and does not run yet
	closed bool
}

// New returns the waiting calls of a queue that mu guards. take removes the next item from the queue, if there is one. It is
// called with mu held.
func New[T any](mu *sync.Mutex, take func() (T, bool)) *Calls[T] {
	return &Calls[T]{mu: mu, take: take}
}

// Next takes an item. It blocks until there is one, ctx is done, done is closed or Close is called. It returns ctx's error if ctx
// is done, and then no item was taken; it returns [driver.ErrClosed] in the last two cases. It may be called concurrently.
func (c *Calls[T]) Next(ctx context.Context, done <-chan struct{}) (T, error) {
	var none T
	select {
	case <-done:
		return none, driver.ErrClosed
	default:
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return none, driver.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		c.mu.Unlock()
		return none, err
	}
	if item, ok := c.take(); ok {
		c.mu.Unlock()
		return item, nil
	}
	call := make(chan T, 1)
	c.calls = append(c.calls, call)
	c.mu.Unlock()

	err := driver.ErrClosed
	select {
	case item, ok := <-call:
		return c.woken(item, ok)
	case <-ctx.Done():
		err = ctx.Err()
	case <-done:
	}
	if c.leave(call) {
		return none, err
	}
	item, ok := <-call // it was passed at the same time
	return c.woken(item, ok)
}

// Wake passes the next item to a waiting call. The queue calls it when an item may have become ready.
func (c *Calls[T]) Wake() {
	n := len(c.calls)
	if n == 0 || c.waking {
		return
	}
	item, ok := c.take()
	if !ok {
		return
	}
	c.calls[n-1] <- item
	c.calls[n-1] = nil
	c.calls = c.calls[:n-1]
	c.waking = true
}

// Close ends all calls of Next, also later ones.
func (c *Calls[T]) Close() {
	c.closed = true
	for _, call := range c.calls {
		close(call)
	}
	c.calls = nil
}

// woken is called by a call that has got an item.
func (c *Calls[T]) woken(item T, ok bool) (T, error) {
	if !ok {
		return item, driver.ErrClosed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waking = false
	c.Wake()
	return item, nil
}

// leave removes a waiting call. It reports whether the call was still waiting.
func (c *Calls[T]) leave(call chan T) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.calls, call)
	if i < 0 {
		return false
	}
	c.calls = slices.Delete(c.calls, i, i+1)
	return true
}
