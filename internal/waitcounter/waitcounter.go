// Package waitcounter provides a counter that can be waited on until it is zero.
package waitcounter

import (
	"context"
	"sync"
	"sync/atomic"
)

// A Counter is a counter that can be waited on until it is zero. The zero value is ready to use. All methods may be called
// concurrently.
type Counter struct {
	n       atomic.Int64
	mu      sync.Mutex
	waiters []chan struct{}
}

// Add adds n, which may be negative.
func (t *Counter) Add(n int64) {
	if t.n.Add(n) > 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n.Load() > 0 {
		return // something was added since then
	}
	for _, w := range t.waiters {
		close(w)
	}
	t.waiters = nil
}

// Zero reports whether the counter is zero or below.
func (t *Counter) Zero() bool { return t.n.Load() <= 0 }

// Wait blocks until the counter is zero or below, or ctx is done.
func (t *Counter) Wait(ctx context.Context) error {
	t.mu.Lock()
	if t.n.Load() <= 0 {
		t.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	t.waiters = append(t.waiters, done)
	t.mu.Unlock()

	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
