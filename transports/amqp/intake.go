package amqp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/waiting"
)

// deliverable is a message that the broker has delivered and that can be delivered to a handler.
type deliverable interface{ handOut() *driver.Delivery }

// An intake is the part of a subscription that ordered and unordered groups have in common: its life cycle and the calls of
// Next. I is a delivery of the broker, S a session with the broker. The subscription begins at the first Next, and ends in
// two steps: open ends when it is closed, life when the transport does not wait any longer for deliveries to be settled.
//
// mu guards the state of the subscription, its sessions and their items. Methods that use this state and don't lock mu are called
// with mu locked.
type intake[I deliverable, S any] struct {
	t   *Transport
	sub driver.Subscription
	run func() error // runs one session and returns why it has ended
	// load reads the body of a message that waits in a file. If that fails, the broker redelivers the message. It locks mu.
	load func(I) error

	begin    sync.Once
	open     context.Context
	stop     context.CancelFunc
	life     context.Context
	released chan struct{} // closed when messages that were not delivered are given back
	release  func()

	mu      sync.Mutex
	closed  bool
	session *S // nil between two sessions
	ready   []I
	calls   *waiting.Calls[I]
	unseen  unseen
}

func newIntake[I deliverable, S any](t *Transport, s driver.Subscription, take func() (I, bool), load func(I) error, run func() error) *intake[I, S] {
	in := &intake[I, S]{t: t, sub: s, run: run, load: load, life: t.ctx, released: make(chan struct{}), unseen: make(unseen)}
	in.open, in.stop = context.WithCancel(t.ctx) //nolint:gosec // shut calls stop
	in.release = sync.OnceFunc(func() { close(in.released) })
	in.calls = waiting.New(&in.mu, take)
	return in
}

// Next blocks until there is a message that may be handled. The first call begins consuming. While the connection is lost,
// or another process leads an ordered group, Next waits.
func (in *intake[I, S]) Next(ctx context.Context) (*driver.Delivery, error) {
	in.begin.Do(func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if !in.closed {
			in.t.work.Go(in.consume)
		}
	})
	for {
		it, err := in.calls.Next(ctx, nil)
		if err != nil {
			return nil, err
		}
		if in.load(it) == nil {
			return it.handOut(), nil
		}
	}
}

// consume runs one session after the other until the subscription is closed.
func (in *intake[I, S]) consume() {
	defer in.release()
	pause := newBackoff()
	for in.open.Err() == nil {
		began := time.Now()
		err := in.run()
		if errors.Is(err, errRenew) {
			continue
		}
		if time.Since(began) > stableSession {
			pause.Reset()
		}
		if in.open.Err() != nil {
			return
		}
		in.t.cfg.Logger.Warn("leat: amqp: consuming is interrupted", "group", in.sub.Group, "error", err)
		pause.Wait(in.open)
	}
}

// shut closes the subscription for further messages.
func (in *intake[I, S]) shut() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	in.calls.Close()
	if in.session == nil {
		in.release()
	}
	in.stop()
}

// Close blocks until the messages that were not delivered are given back, as long as ctx allows. In an ordered group, and in
// any other with one worker, they are given back after the running deliveries are settled.
func (in *intake[I, S]) Close(ctx context.Context) error {
	in.shut()
	select {
	case <-in.released:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("amqp: close feed of group %q: %w", in.sub.Group, context.Cause(ctx))
	}
}
