package middleware_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
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

var errAway = errors.New("the database is away")

// breakers is an observer of circuit breakers.
type breakers struct {
	audience
	mu      sync.Mutex
	changes []bus.BreakerChange
}

func (b *breakers) BreakerChanged(c bus.BreakerChange) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, c)
}

// all returns the changes so far.
func (b *breakers) all() []bus.BreakerChange {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.changes)
}

// count returns how often breakers came into a state.
func (b *breakers) count(state bus.BreakerState) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.changes {
		if c.State == state {
			n++
		}
	}
	return n
}

func policy(p bus.RetryPolicy) func(*bus.Handler) { return func(h *bus.Handler) { h.Retry = &p } }

// quickly returns a policy that poisons within two seconds.
func quickly() bus.RetryPolicy {
	return bus.RetryPolicy{Delays: []time.Duration{50 * time.Millisecond, 250 * time.Millisecond, time.Second}}
}

func orderID(i int) string { return fmt.Sprintf("id-%04d", i) }

// outage is a bus whose handler has an unreachable dependency.
type outage struct {
	*service
	breakers *breakers
	away     atomic.Bool
	tries    atomic.Int64
	mu       sync.Mutex
	order    map[string][]string // key → the ids that succeeded
	log      bytes.Buffer
}

func newOutage(t *testing.T, change ...func(*bus.Handler)) *outage {
	o := &outage{breakers: &breakers{}, order: map[string][]string{}}
	b, err := bus.New(memory.New(memory.Config{Queue: 10_000}), bus.Config{
		Service: "shop", Stack: standard(), Observers: []bus.Observer{o.breakers},
		Logger: slog.New(slog.NewTextHandler(&o.log, nil)), // slog's handlers have a lock
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	o.service = serve(t, b, rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
		o.tries.Add(1)
		time.Sleep(time.Millisecond)
		if o.away.Load() {
			return errAway
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		key := driver.PartitionKey(msg)
		o.order[key] = append(o.order[key], driver.MessageID(msg))
		return nil
	}, change...))
	return o
}

func (o *outage) health() bus.Health { return o.bus.Health()[0] }

func TestBreaker_longOutagePoisonsNothing(t *testing.T) {
	for name, change := range map[string][]func(*bus.Handler){
		"default policy":      nil,
		"quick tries":         {policy(quickly())},
		"quick, four workers": {policy(bus.RetryPolicy{Delays: []time.Duration{time.Second, 5 * time.Second, 30 * time.Second}}), func(h *bus.Handler) { h.Concurrency = 4 }},
		"ordered":             {policy(quickly()), func(h *bus.Handler) { h.Order = bus.OrderedByKey }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOutage(t, change...)
				const n = 1000
				for i := range n / 2 { // healthy for a while
					require.NoError(t, o.bus.Publish(t.Context(), placedV1{OrderID: "x"}, bus.WithID(orderID(i)), bus.WithKey(fmt.Sprint("key-", i%25))))
				}
				o.idle()
				require.Empty(t, o.breakers.all())
				before := o.tries.Load()
				o.away.Store(true)
				for i := n / 2; i < n; i++ {
					require.NoError(t, o.bus.Publish(t.Context(), placedV1{OrderID: "x"}, bus.WithID(orderID(i)), bus.WithKey(fmt.Sprint("key-", i%25))))
				}
				time.Sleep(time.Minute)
				require.Equal(t, bus.Degraded, o.health().State)
				require.Contains(t, o.health().Degraded["circuit breaker"], "the database is away")
				time.Sleep(9 * time.Minute)
				require.Less(t, o.tries.Load()-before, int64(250), "it pauses")
				o.away.Store(false)
				o.idle()
				synctest.Wait()
				require.Empty(t, o.poisoned("ledger"))
				require.EqualValues(t, n, o.stats("ledger").Handled)
				require.Equal(t, bus.Running, o.health().State)
				require.Equal(t, 1, o.breakers.count(bus.BreakerClosed))
				require.Equal(t, 1, strings.Count(o.log.String(), "leat: group paused"), "a line a change")
				require.Equal(t, 1, strings.Count(o.log.String(), "leat: group resumed"))
				if name == "ordered" {
					for key, done := range o.order {
						require.IsIncreasing(t, done, key)
						require.Len(t, done, n/25)
					}
				}
			})
		})
	}
}

func TestBreaker_probesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutage(t)
		o.away.Store(true)
		for i := range 200 {
			o.publish(orderID(i))
		}
		time.Sleep(10 * time.Minute)
		var waits []time.Duration
		for _, c := range o.breakers.all() {
			require.Equal(t, "shop.ledger", c.Group)
			require.ErrorIs(t, c.Err, errAway)
			if c.State == bus.BreakerOpen {
				waits = append(waits, c.Wait)
			}
		}
		const s = time.Second
		require.Equal(t, []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 30 * s, 30 * s}, waits[:7])
		o.away.Store(false)
		o.idle()
		changes := o.breakers.all()
		last := changes[len(changes)-1]
		require.Equal(t, bus.BreakerClosed, last.State)
		require.InDelta(t, 10*time.Minute, last.After, float64(time.Minute))
	})
}

func TestBreaker_shortOutageDoesNotPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutage(t)
		o.away.Store(true)
		for i := range 100 {
			o.publish(orderID(i))
		}
		time.Sleep(3 * time.Second)
		o.away.Store(false)
		o.idle()
		require.Empty(t, o.breakers.all())
		require.EqualValues(t, 100, o.stats("ledger").Handled)
	})
}

// TestBreaker_badMessagesDoNotPause checks that any number of bad messages do not pause a group if others succeed or
// the errors are permanent.
func TestBreaker_badMessagesDoNotPause(t *testing.T) {
	type workload struct {
		n    int
		fail func(i, try int) error
		dead int
	}
	for name, w := range map[string]workload{
		"one of 1,000 keys fails": {5000, func(i, _ int) error {
			if i%1000 == 7 {
				return errHandler
			}
			return nil
		}, 5},
		"a storm of permanent errors": {1000, func(int, int) error { return bus.Permanent(errHandler) }, 1000},
		"snoozes": {200, func(_, try int) error {
			if try < 5 {
				return bus.Snooze(time.Second)
			}
			return nil
		}, 0},
		"discards": {200, func(int, int) error { return bus.Discard(errHandler) }, 0},
		"every fifth is good": {500, func(i, _ int) error {
			if i%5 == 0 {
				return nil
			}
			return errHandler
		}, 400},
		"each fails three times": {300, func(_, try int) error {
			if try <= 3 {
				return errHandler
			}
			return nil
		}, 0},
		"nine bad ones, alone": {9, func(int, int) error { return errHandler }, 9},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen breakers
				var mu sync.Mutex
				tries := map[string]int{}
				s := serve(t, newBus(t, memory.New(memory.Config{Queue: 10_000}), standard(), &seen), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
					mu.Lock()
					defer mu.Unlock()
					id := driver.MessageID(msg)
					tries[id]++
					var i int
					_, err := fmt.Sscanf(id, "id-%d", &i)
					require.NoError(t, err)
					return w.fail(i, tries[id])
				}, policy(quickly())))
				for i := range w.n {
					s.publish(orderID(i))
				}
				s.idle()
				require.Empty(t, seen.all())
				require.EqualValues(t, w.dead, s.stats("ledger").Poisoned)
			})
		})
	}
}

func TestBreaker_healthyMessagesPassDuringAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen breakers
		s := serve(t, newBus(t, nil, standard(), &seen), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
			if strings.HasPrefix(driver.MessageID(msg), "bad") {
				return errHandler
			}
			return nil
		}, policy(quickly())))
		for i := range 20 {
			s.publish(fmt.Sprintf("bad-%d", i))
		}
		time.Sleep(time.Minute)
		require.Equal(t, 0, seen.count(bus.BreakerClosed))
		require.NotZero(t, seen.count(bus.BreakerOpen), "nothing tells them from an outage")
		for i := range 20 {
			s.publish(fmt.Sprintf("good-%d", i))
		}
		s.idle()
		require.EqualValues(t, 20, s.stats("ledger").Handled)
		require.EqualValues(t, 20, s.stats("ledger").Poisoned, "in the end")
		require.Equal(t, 1, seen.count(bus.BreakerClosed))
	})
}

// TestBreaker_staysPausedWithoutMessages checks that a group does not resume because it has no message for a
// probe: another process may have the rest of the backlog.
func TestBreaker_staysPausedWithoutMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutage(t, policy(quickly()))
		o.away.Store(true)
		const n = 12
		for i := range n {
			o.publish(orderID(i))
		}
		time.Sleep(5 * time.Second)
		require.NotZero(t, o.breakers.count(bus.BreakerOpen))
		other, err := o.bus.Transport().Subscribe(t.Context(), driver.Subscription{Group: "shop.ledger", Topics: []string{"order.placed.*"}, Concurrency: n})
		require.NoError(t, err)
		waiting, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		var held []*driver.Delivery
		for d, err := other.Next(waiting); err == nil; d, err = other.Next(waiting) {
			held = append(held, d)
		}
		require.NotEmpty(t, held)
		time.Sleep(10 * time.Minute)
		require.Zero(t, o.breakers.count(bus.BreakerClosed))
		for _, d := range held {
			require.NoError(t, d.Settler.GiveBack(0))
		}
		o.away.Store(false)
		o.idle()
		require.Empty(t, o.poisoned("ledger"))
		require.NoError(t, other.Close(t.Context()))
	})
}

// TestBreaker_badBacklogIsPoisoned checks that a backlog of bad messages, which looks like an outage, is
// poisoned after four hours.
func TestBreaker_badBacklogIsPoisoned(t *testing.T) {
	for name, change := range map[string][]func(*bus.Handler){
		"default policy": nil,
		"quick tries":    {policy(quickly())},
		"four workers":   {func(h *bus.Handler) { h.Concurrency = 4 }},
		"ordered":        {policy(quickly()), func(h *bus.Handler) { h.Order = bus.OrderedByKey }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOutage(t, change...)
				o.away.Store(true)
				const n = 15
				for i := range n {
					require.NoError(t, o.bus.Publish(t.Context(), placedV1{OrderID: "x"}, bus.WithID(orderID(i)), bus.WithKey(fmt.Sprint("key-", i))))
				}
				time.Sleep(4*time.Hour - time.Minute)
				require.Empty(t, o.poisoned("ledger"), "an outage poisons nothing")
				require.Equal(t, bus.Degraded, o.health().State)
				require.Contains(t, o.health().Degraded["circuit breaker"], "every 30s, at no cost until it has been failing for 4h0m0s")
				o.idle()
				require.Len(t, o.poisoned("ledger"), n)
				time.Sleep(4 * time.Hour)
				require.NotContains(t, o.health().Degraded, "circuit breaker", "nothing is left to be paused for")
				require.Equal(t, 1, o.breakers.count(bus.BreakerClosed))
			})
		})
	}
}

// TestBreaker_ignoresPanics checks that panics count as bugs, not as outages.
func TestBreaker_ignoresPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen breakers
		var away atomic.Bool
		s := serve(t, newBus(t, nil, standard(), &seen), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
			if strings.HasPrefix(driver.MessageID(msg), "bug") {
				panic("nil map")
			}
			if away.Load() {
				return errAway
			}
			return nil
		}, policy(quickly())))
		for i := range 50 {
			s.publish(fmt.Sprintf("bug-%d", i))
		}
		s.idle()
		require.Empty(t, seen.all())
		require.EqualValues(t, 50, s.stats("ledger").Poisoned)

		away.Store(true)
		for i := range 20 {
			s.publish(orderID(i))
		}
		time.Sleep(10 * time.Minute)
		require.NotZero(t, seen.count(bus.BreakerOpen))
		opened := seen.count(bus.BreakerOpen)
		away.Store(false)
		for i := range 50 {
			s.publish(fmt.Sprintf("bug-again-%d", i))
		}
		s.idle()
		require.Equal(t, 1, seen.count(bus.BreakerClosed))
		require.LessOrEqual(t, seen.count(bus.BreakerOpen), opened+1, "no probe that panicked has made it wait")
		require.EqualValues(t, 20, s.stats("ledger").Handled)
		require.EqualValues(t, 100, s.stats("ledger").Poisoned)
	})
}

func TestBreaker_drainEndsAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutage(t)
		o.away.Store(true)
		for i := range 100 {
			o.publish(orderID(i))
		}
		time.Sleep(20 * time.Second)
		require.Contains(t, o.health().Degraded, "circuit breaker")
		began := time.Now()
		require.NoError(t, o.stop())
		require.Less(t, time.Since(began), 100*time.Millisecond)
		require.Empty(t, o.poisoned("ledger"))
		require.NotContains(t, o.log.String(), "group resumed")
	})
}

// TestBreaker_ofOneTryPausesAfterTheFirstMessages checks that a policy of one try poisons only the first messages of an outage.
func TestBreaker_ofOneTryPausesAfterTheFirstMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutage(t, policy(bus.OneTry()), func(h *bus.Handler) { h.Concurrency = 1 })
		o.away.Store(true)
		for i := range 100 {
			o.publish(orderID(i))
		}
		time.Sleep(time.Hour)
		o.away.Store(false)
		o.idle()
		require.Len(t, o.poisoned("ledger"), 9)
	})
}

func TestBreaker_withoutItAnOutagePoisons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := bus.NoBreaker()
		o := newOutage(t, policy(quickly()), func(h *bus.Handler) { h.Breaker = &none })
		o.away.Store(true)
		for i := range 100 {
			o.publish(orderID(i))
		}
		o.idle()
		require.Len(t, o.poisoned("ledger"), 100)
		require.Empty(t, o.breakers.all())
	})
}

func TestBreaker_needsNoRetryStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen breakers
		var away atomic.Bool
		away.Store(true)
		s := serve(t, newBus(t, nil, nil, &seen), rawHandler("ledger", func(context.Context, *message.Message) error {
			if away.Load() {
				return errAway
			}
			return nil
		}))
		for i := range 50 {
			s.publish(orderID(i))
		}
		time.Sleep(10 * time.Minute)
		require.NotZero(t, seen.count(bus.BreakerOpen))
		away.Store(false)
		s.idle()
		require.EqualValues(t, 50, s.stats("ledger").Handled)
		require.Equal(t, 1, seen.count(bus.BreakerClosed))
	})
}
