package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
)

// remote is a store with leases by the clock. Tests can make it fail.
type remote struct {
	mu    sync.Mutex
	keys  map[string]remoteKey
	calls map[string]int
	last  int
	// before and after are called around each call's effect; their error is its answer.
	before, after func(ctx context.Context, op string) error
}

type remoteKey struct {
	token string
	done  bool
	until time.Time
}

func newRemote() *remote {
	return &remote{keys: make(map[string]remoteKey), calls: make(map[string]int)}
}

func (r *remote) sabotage(before, after func(context.Context, string) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.before, r.after = before, after
}

func refuse(context.Context, string) error { return errors.New("connection refused") }

func hang(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

func only(op string, f func(context.Context, string) error) func(context.Context, string) error {
	return func(ctx context.Context, called string) error {
		if called != op {
			return nil
		}
		return f(ctx, called)
	}
}

func (r *remote) call(ctx context.Context, op string, effect func() error) error {
	r.mu.Lock()
	before, after := r.before, r.after
	r.calls[op]++
	r.mu.Unlock()
	if before != nil {
		if err := before(ctx, op); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	err := effect()
	r.mu.Unlock()
	if after != nil && err == nil {
		err = after(ctx, op)
	}
	return err
}

func (r *remote) held(key string) (remoteKey, bool) {
	k, ok := r.keys[key]
	return k, ok && time.Now().Before(k.until)
}

func (r *remote) owned(c middleware.Claim, next func()) error {
	if k, held := r.held(c.Key); held && (k.done || k.token != c.Token) {
		return middleware.ErrClaimLost
	}
	next()
	return nil
}

func (r *remote) Claim(ctx context.Context, key string, lease time.Duration) (middleware.Claim, error) {
	r.mu.Lock()
	r.last++
	c := middleware.Claim{Key: key, Token: fmt.Sprint(r.last), State: middleware.Claimed}
	r.mu.Unlock()
	err := r.call(ctx, "claim", func() error {
		k, held := r.held(key)
		switch {
		case !held:
			r.keys[key] = remoteKey{token: c.Token, until: time.Now().Add(lease)}
		case k.done:
			c = middleware.Claim{Key: key, State: middleware.Done}
		default:
			c = middleware.Claim{Key: key, State: middleware.InProgress, Left: time.Until(k.until)}
		}
		return nil
	})
	return c, err
}

func (r *remote) Renew(ctx context.Context, c middleware.Claim, lease time.Duration) error {
	return r.call(ctx, "renew", func() error {
		return r.owned(c, func() { r.keys[c.Key] = remoteKey{token: c.Token, until: time.Now().Add(lease)} })
	})
}

func (r *remote) Done(ctx context.Context, c middleware.Claim, keep time.Duration) error {
	return r.call(ctx, "done", func() error {
		return r.owned(c, func() { r.keys[c.Key] = remoteKey{done: true, until: time.Now().Add(keep)} })
	})
}

func (r *remote) Release(ctx context.Context, c middleware.Claim) error {
	return r.call(ctx, "release", func() error { return r.owned(c, func() { delete(r.keys, c.Key) }) })
}

// shelf is a transport that delivers only the messages of put.
type shelf struct {
	bus.Transport

	feeds map[string]*shelfFeed
}

func newShelf() *shelf { return &shelf{feeds: make(map[string]*shelfFeed)} }

func (s *shelf) Capabilities() driver.Capabilities { return driver.Capabilities{Durable: true} }
func (s *shelf) Close(context.Context) error       { return nil }

func (s *shelf) Subscribe(_ context.Context, sub driver.Subscription) (driver.Receiver, error) {
	f := &shelfFeed{group: sub.Group, out: make(chan *driver.Delivery), settled: make(chan string, 1)}
	s.feeds[sub.Group] = f
	return f, nil
}

type shelfFeed struct {
	group   string
	out     chan *driver.Delivery
	settled chan string
}

func (f *shelfFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	select {
	case d := <-f.out:
		return d, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *shelfFeed) Close(context.Context) error { return nil }

// put delivers one message and returns how it was settled.
func (f *shelfFeed) put(msg *message.Message) string {
	f.out <- &driver.Delivery{Message: msg, Group: f.group, Attempt: 1, Settler: f}
	return <-f.settled
}

func (f *shelfFeed) settle(how string) error { f.settled <- how; return nil }

func (f *shelfFeed) Ack() error                                 { return f.settle("acked") }
func (f *shelfFeed) Redeliver(time.Duration) error              { return f.settle("redelivered") }
func (f *shelfFeed) GiveBack(time.Duration) error               { return f.settle("given back") }
func (f *shelfFeed) Poison(context.Context, driver.Fault) error { return f.settle("poisoned") }
