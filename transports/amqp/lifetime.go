package amqp

import (
	"context"
	"sync"

	"github.com/leatbus/leat/internal/waitcounter"
)

// A lifetime is that of a transport, for the parts that need no more of it. It ends in two steps: after closed is set nothing
// else begins, and ctx ends when Close stops waiting for what has begun.
type lifetime struct {
	ctx    context.Context // of work in the background
	cancel context.CancelFunc
	active waitcounter.Counter // publishings, deliveries that are not settled, redeliveries that are being published
	work   sync.WaitGroup      // goroutines: receivers and work in the background

	mu     sync.Mutex // also guards fields of the transport
	closed bool
}

// enter adds something that Close waits for. It returns false if the transport is closed.
func (l *lifetime) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.active.Add(1)
	return true
}

// background runs a function that may outlive its caller; Close waits for it. It must be called while something else is counted as
// active.
func (l *lifetime) background(do func(ctx context.Context)) {
	l.active.Add(1)
	l.work.Go(func() {
		defer l.active.Add(-1)
		do(l.ctx)
	})
}
