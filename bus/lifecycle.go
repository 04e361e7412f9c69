package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A lifecycle records how far a bus has come. Each step is a channel that is closed when it is reached:
//
//	running ─► stopping ─► stopped ─► closing ─► closed
//
// A bus that is drained before Run, or whose groups can not be subscribed, is stopped without the first two. stop asks Run to end;
// Drain and Close close it.
type lifecycle struct {
	running  chan struct{} // every group is subscribed and consumes
	stopping chan struct{} // the bus takes no more messages
	stopped  chan struct{} // Run is over
	closing  chan struct{} // Close has drained the bus, or given up
	closed   chan struct{} // Close is over

	stopOnce sync.Once
	stop     chan struct{}
	runErr   error // valid once stopped is closed

	drainCtx      context.Context    // done when a caller of Drain or Close gives handlers no more time
	cancelDrain   context.CancelFunc // cancels drainCtx
	drainTimedOut atomic.Bool        // the drain timeout has passed

	closeOnce sync.Once
	closeErr  error // valid once closed is closed
}

func newLifecycle() *lifecycle {
	l := &lifecycle{
		running:  make(chan struct{}),
		stopping: make(chan struct{}),
		stopped:  make(chan struct{}),
		closing:  make(chan struct{}),
		closed:   make(chan struct{}),
		stop:     make(chan struct{}),
	}
	l.drainCtx, l.cancelDrain = context.WithCancel(context.Background()) //nolint:gosec // limitDrain cancels it
	return l
}

func reached(step <-chan struct{}) bool {
	select {
	case <-step:
		return true
	default:
		return false
	}
}

func (l *lifecycle) state() State {
	switch {
	case reached(l.stopped):
		return Stopped
	case reached(l.stopping):
		return Draining
	case reached(l.running):
		return Running
	default:
		return Waiting
	}
}

func (l *lifecycle) isStopping() bool { return reached(l.stopping) }

func (l *lifecycle) isClosed() bool { return reached(l.closing) }

// interrupted reports whether the drain timeout has passed, and the contexts of handlers are cancelled.
func (l *lifecycle) interrupted() bool { return l.drainTimedOut.Load() }

// drain ends Run, and blocks until it has returned. With neverRan, Run was not called, and returns an error from now on.
func (l *lifecycle) drain(ctx context.Context, neverRan bool) error {
	defer l.limitDrain(ctx)()
	l.stopOnce.Do(func() { close(l.stop) })
	if neverRan {
		close(l.stopped)
	}
	if err := await(ctx, l.stopped); err != nil {
		return fmt.Errorf("bus: drain: not finished: %w", err)
	}
	return l.runErr
}

// drainLimit returns a context that ends when the drain timeout has passed, or earlier if a caller of Drain or Close asks
// for it.
func (l *lifecycle) drainLimit(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(l.drainCtx, timeout)
}

// close calls do once. Later calls wait until the first is over, each until its own context is done, and return the same error.
func (l *lifecycle) close(ctx context.Context, do func() error) error {
	first := false
	l.closeOnce.Do(func() { first = true })
	if first {
		defer close(l.closed)
		l.closeErr = do()
		return l.closeErr
	}
	defer l.limitDrain(ctx)()
	if err := await(ctx, l.closed); err != nil {
		return fmt.Errorf("bus: close: not finished: %w", err)
	}
	return l.closeErr
}

// limitDrain interrupts the handlers when ctx is cancelled, or shortly before its deadline: handlers get interruptGrace to
// return after they are interrupted. The caller must call release when ctx no longer counts.
func (l *lifecycle) limitDrain(ctx context.Context) (release func()) {
	cancel := func() {}
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-2*interruptGrace))
	}
	stop := context.AfterFunc(ctx, l.cancelDrain)
	return func() {
		stop()
		cancel()
	}
}

// await blocks until done is closed or ctx is done. Handlers are interrupted before a deadline, but not before a
// cancellation. So after a cancellation, await also waits for their grace period.
func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	grace := 2 * interruptGrace
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		grace = 0
	}
	select {
	case <-done:
		return nil
	case <-time.After(grace):
		return context.Cause(ctx)
	}
}
