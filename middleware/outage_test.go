package middleware_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

// kept is the memory transport as if it outlived its process, so that a service can be started again over it.
type kept struct{ *memory.Transport }

func (k kept) Capabilities() driver.Capabilities {
	c := k.Transport.Capabilities()
	c.Durable = true
	return c
}

// shop is a service whose dependency may be away, and that can be started again.
type shop struct {
	t         *testing.T
	transport kept
	handler   bus.Handler
	away      atomic.Bool
	current   *service

	mu      sync.Mutex
	handled map[string][]success // by key
}

type success struct {
	id string
	at time.Time
}

func newShop(t *testing.T, change ...func(*bus.Handler)) *shop {
	s := &shop{t: t, transport: kept{memory.New(memory.Config{Queue: 1 << 20, Bytes: 1 << 30})}, handled: map[string][]success{}}
	s.start(rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
		time.Sleep(time.Millisecond)
		if s.away.Load() {
			return errAway
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		key := driver.PartitionKey(msg)
		s.handled[key] = append(s.handled[key], success{driver.MessageID(msg), time.Now()})
		return nil
	}, change...))
	return s
}

func (s *shop) start(h bus.Handler) {
	s.handler = h
	b, err := bus.New(s.transport, bus.Config{Service: "shop", Stack: standard(), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = b.Close(context.Background()) })
	s.current = serve(s.t, b, h)
}

func (s *shop) restart() {
	require.NoError(s.t, s.current.bus.Drain(context.Background()))
	s.start(s.handler)
}

func (s *shop) publish(i, keys int) {
	opts := []bus.PublishOption{bus.WithID(fmt.Sprintf("id-%07d", i))}
	if keys > 0 {
		opts = append(opts, bus.WithKey(fmt.Sprint("key-", i%keys)))
	}
	require.NoError(s.t, s.current.bus.Publish(context.Background(), placedV1{OrderID: "x"}, opts...))
}

// total returns how many messages were handled.
func (s *shop) total() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, done := range s.handled {
		n += len(done)
	}
	return n
}

type outageCell struct {
	group   string
	keys    int
	change  func(*bus.Handler)
	every   time.Duration
	restart bool
	outage  time.Duration
}

func (c outageCell) String() string {
	name := fmt.Sprintf("%s, a message every %s, away for %s", c.group, c.every, c.outage)
	if c.restart {
		name += ", with restarts"
	}
	return name
}

// play lets the dependency be away for a while, and returns when it came back and how many messages were
// published.
func (c outageCell) play(t *testing.T, s *shop) (back time.Time, n int) {
	for ; n < 20; n++ { // healthy
		s.publish(n, c.keys)
		time.Sleep(c.every)
	}
	require.Equal(t, n, s.total())
	s.away.Store(true)
	began, restarts := time.Now(), 0
	for time.Since(began) < c.outage {
		s.publish(n, c.keys)
		n++
		if c.restart && time.Since(began) > time.Duration(restarts+1)*c.outage/3 && restarts < 2 {
			s.restart()
			restarts++
		}
		wait := c.every
		if since := time.Since(began); since > 5*time.Minute && c.outage-since > 5*time.Minute {
			wait = max(wait, time.Second) // in the middle of a long outage more traffic makes the backlog longer, and nothing else
		}
		time.Sleep(min(wait, c.outage-time.Since(began)))
	}
	s.away.Store(false)
	return time.Now(), n
}

// An outage poisons no healthy message, whatever the traffic is, and soon after it everything is handled.
func TestBreaker_sparesHealthyMessagesInAnOutage(t *testing.T) {
	strict := func(h *bus.Handler) { h.Order = bus.OrderedStrictly }
	byKey := func(h *bus.Handler) { h.Order = bus.OrderedByKey }
	var cells []outageCell
	for _, g := range []outageCell{
		{group: "strict", keys: 1, change: strict},
		{group: "5 keys", keys: 5, change: byKey},
		{group: "1000 keys", keys: 1000, change: byKey},
		{group: "unordered", change: func(*bus.Handler) {}},
	} {
		for _, g.every = range []time.Duration{100 * time.Millisecond, 30 * time.Second, 5 * time.Minute} {
			for _, g.restart = range []bool{false, true} {
				for _, g.outage = range []time.Duration{5 * time.Minute, 45 * time.Minute, 3 * time.Hour} {
					cells = append(cells, g)
				}
			}
		}
	}
	for _, c := range cells {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newShop(t, c.change)
				back, n := c.play(t, s)
				time.Sleep(time.Hour)
				require.Empty(t, s.current.poisoned("ledger"))
				require.Equal(t, n, s.total(), "each is handled once")

				limit := time.Minute
				if c.every == 5*time.Minute {
					limit = 5 * time.Minute
				}
				for key, done := range s.handled {
					after := slices.IndexFunc(done, func(s success) bool { return !s.at.Before(back) })
					if after >= 0 {
						require.LessOrEqual(t, done[after].at.Sub(back), limit, "key %q", key)
					}
					if c.keys > 0 {
						require.True(t, slices.IsSortedFunc(done, func(a, b success) int { return a.at.Compare(b.at) }))
						require.True(t, slices.IsSortedFunc(done, func(a, b success) int { return slices.Compare([]byte(a.id), []byte(b.id)) }), "key %q keeps its order", key)
					}
				}
			})
		})
	}
}

func TestBreaker_letsABadMessageLeave(t *testing.T) {
	for name, c := range map[string]struct {
		err         error
		traffic     time.Duration // between good messages; 0 for none
		change      func(*bus.Handler)
		least, most time.Duration
	}{
		"permanent":                            {bus.Permanent(errHandler), 0, nil, 0, time.Second},
		"permanent, strict":                    {bus.Permanent(errHandler), 0, func(h *bus.Handler) { h.Order = bus.OrderedStrictly }, 0, time.Second},
		"others succeed":                       {errHandler, 10 * time.Second, nil, 30 * time.Minute, 45 * time.Minute},
		"others succeed, by key":               {errHandler, 10 * time.Second, func(h *bus.Handler) { h.Order = bus.OrderedByKey }, 30 * time.Minute, 45 * time.Minute},
		"others succeed seldom":                {errHandler, 5 * time.Minute, nil, 30 * time.Minute, 55 * time.Minute},
		"alone":                                {errHandler, 0, nil, 4 * time.Hour, 5 * time.Hour},
		"alone, strict":                        {errHandler, 0, func(h *bus.Handler) { h.Order = bus.OrderedStrictly }, 4 * time.Hour, 5 * time.Hour},
		"alone, one try, parking":              {errHandler, 0, func(h *bus.Handler) { h.Order = bus.OrderedStrictly; policy(bus.OneTry())(h) }, 4 * time.Hour, 4*time.Hour + 10*time.Minute},
		"alone, one try, no parking":           {errHandler, 0, policy(bus.OneTry()), 0, time.Second},
		"alone, quick tries, no parking":       {errHandler, 0, policy(quickly()), time.Second, 3 * time.Second},
		"others succeed, one try, parking":     {errHandler, time.Second, func(h *bus.Handler) { h.Order = bus.OrderedByKey; policy(bus.OneTry())(h) }, 0, 20 * time.Second},
		"others succeed, quick tries, parking": {errHandler, time.Second, func(h *bus.Handler) { h.Order = bus.OrderedByKey; policy(quickly())(h) }, time.Second, 20 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				change := c.change
				if change == nil {
					change = func(*bus.Handler) {}
				}
				var seen breakers
				s := serve(t, newBus(t, nil, standard(), &seen), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
					if driver.MessageID(msg) == "bad" {
						return c.err
					}
					return nil
				}, change))
				began := time.Now()
				require.NoError(t, s.bus.Publish(t.Context(), placedV1{OrderID: "x"}, bus.WithID("bad"), bus.WithKey("bad")))
				for i := 0; len(s.poisoned("ledger")) == 0; i++ {
					require.Less(t, time.Since(began), 24*time.Hour)
					if c.traffic > 0 {
						require.NoError(t, s.bus.Publish(t.Context(), placedV1{OrderID: "x"}, bus.WithKey(fmt.Sprint("good-", i))))
					}
					time.Sleep(max(c.traffic, 100*time.Millisecond))
				}
				took := time.Since(began)
				require.GreaterOrEqual(t, took, c.least)
				require.LessOrEqual(t, took, c.most)
			})
		})
	}
}
