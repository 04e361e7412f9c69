package middleware_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// A probe that takes longer than probes may has not failed: a slow handler ends a pause, too.
func TestBreaker_slowProbesEndAPause(t *testing.T) {
	for _, workers := range []int{1, 4} {
		synctest.Test(t, func(t *testing.T) {
			var away atomic.Bool
			away.Store(true)
			var seen breakers
			s := serve(t, newBus(t, nil, standard(func(c *middleware.Config) { c.Timeout = 10 * time.Minute }), &seen),
				rawHandler("ledger", func(context.Context, *message.Message) error {
					if away.Load() {
						return errAway
					}
					time.Sleep(45 * time.Second)
					return nil
				}, func(h *bus.Handler) { h.Concurrency = workers }))
			for i := range 50 {
				s.publish(orderID(i))
			}
			time.Sleep(2 * time.Minute)
			away.Store(false)
			time.Sleep(20 * time.Minute)
			require.Equal(t, 1, seen.count(bus.BreakerClosed))
			s.idle()
			require.EqualValues(t, 50, s.stats("ledger").Handled)
		})
	}
}

// Failures that lie far apart, of messages that are settled by now, are no outage.
func TestBreaker_forgetsFailuresOfSettledMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen breakers
		tried := map[string]bool{}
		s := serve(t, newBus(t, nil, standard(), &seen), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
			if id := driver.MessageID(msg); !tried[id] {
				tried[id] = true
				return errAway
			}
			return bus.Discard(errHandler)
		}, func(h *bus.Handler) { h.Order = bus.OrderedStrictly }))
		for i := range 30 {
			s.publish(orderID(i))
			time.Sleep(time.Hour)
		}
		require.Empty(t, seen.all())
		require.EqualValues(t, 30, s.stats("ledger").Discarded)
	})
}

// A stock router brings a nacked message back at once and keeps nothing for it: delays would be hot loops.
func TestStockRouter_poisonsWhereAMessageWouldHaveToWait(t *testing.T) {
	policy := bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Minute}}
	version, err := middleware.Version([]bus.Type{placed(1)}, time.Hour)
	require.NoError(t, err)
	for name, inner := range map[string]message.HandlerFunc{
		"a long delay": middleware.Retry(policy)(func(*message.Message) ([]*message.Message, error) { return nil, errHandler }),
		"a newer version": version(func(*message.Message) ([]*message.Message, error) {
			return nil, &bus.NewerVersionError{Have: placed(2), Takes: []bus.Type{placed(1)}}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			var published publisher
			_, err := middleware.Poison(middleware.PoisonConfig{Retry: &policy, Publisher: &published, Topic: "dead"})(inner)(message.NewMessage("a", nil))
			require.NoError(t, err)
			require.Len(t, published.messages, 1)
		})
	}
}

type countingSettler struct {
	driver.Settler
	settled *atomic.Int64
	panics  *atomic.Int64 // how many calls of Poison panic
}

func (s countingSettler) Ack() error {
	s.settled.Add(1)
	return s.Settler.Ack()
}

func (s countingSettler) GiveBack(after time.Duration) error {
	s.settled.Add(1)
	return s.Settler.GiveBack(after)
}

func (s countingSettler) Poison(ctx context.Context, f driver.Fault) error {
	if s.panics.Add(-1) >= 0 {
		panic("the poison queue is broken")
	}
	return s.Settler.Poison(ctx, f)
}

func TestPoison_thatPanicsLeavesTheDeliveryUnsettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled, panics atomic.Int64
		panics.Store(1)
		transport := testenv.Changing{Transport: memory.New(memory.Config{}), Change: func(d *driver.Delivery) { d.Settler = countingSettler{d.Settler, &settled, &panics} }}
		s := serve(t, newBus(t, transport, standard()), rawHandler("ledger", func(context.Context, *message.Message) error { return bus.Permanent(errHandler) }))
		s.publish("a")
		s.idle()
		require.Len(t, s.poisoned("ledger"), 1)
	})
}

// loudLog panics at one line.
type loudLog struct{ slog.Handler }

func (loudLog) Enabled(context.Context, slog.Level) bool { return true }

func (loudLog) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		panic("the log is broken")
	}
	return nil
}

func TestRouter_settlesOnceThoughThePartBehindPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled, panics atomic.Int64
		transport := testenv.Changing{Transport: memory.New(memory.Config{}), Change: func(d *driver.Delivery) { d.Settler = countingSettler{d.Settler, &settled, &panics} }}
		b, err := bus.New(transport, bus.Config{Service: "shop", Stack: standard(), Logger: slog.New(loudLog{})})
		require.NoError(t, err)
		t.Cleanup(func() { _ = b.Close(context.Background()) })
		s := serve(t, b, rawHandler("ledger", func(context.Context, *message.Message) error { return bus.Discard(&bus.OtherEventError{}) }))
		s.publish("a")
		s.idle()
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, settled.Load())
	})
}

// A message that waited for a newer version has not failed, and one that has failed may still wait for one.
func TestVersion_waitsAreNoFailures(t *testing.T) {
	for name, c := range map[string]struct {
		hold time.Duration
		at   func(age time.Duration) error
	}{
		"an outage after a long wait": {24 * time.Hour, func(age time.Duration) error {
			switch {
			case age < 5*time.Hour:
				return &bus.NewerVersionError{}
			case age < 6*time.Hour:
				return errAway
			}
			return nil
		}},
		"a roll-back after an outage": {time.Hour, func(age time.Duration) error {
			switch {
			case age < 2*time.Hour:
				return errAway
			case age < 2*time.Hour+10*time.Minute:
				return &bus.NewerVersionError{}
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				s := serve(t, newBus(t, nil, standard(func(m *middleware.Config) { m.HoldNewer = c.hold })),
					rawHandler("ledger", func(context.Context, *message.Message) error { return c.at(time.Since(began)) },
						func(h *bus.Handler) { h.Types = []bus.Type{placed(1)} }))
				for i := range 20 {
					s.publish(orderID(i))
				}
				time.Sleep(12 * time.Hour)
				require.Empty(t, s.poisoned("ledger"))
				require.EqualValues(t, 20, s.stats("ledger").Handled)
			})
		})
	}
}

func TestRouter_decidesOnWhatTheStepsLeave(t *testing.T) {
	step := func(err error) middleware.Step {
		return middleware.Use("tenant", func(message.HandlerFunc) message.HandlerFunc {
			return func(*message.Message) ([]*message.Message, error) { return nil, err }
		})
	}
	fails := func(context.Context, *message.Message) error { return errHandler }
	for name, c := range map[string]struct {
		stack bus.Stack
		fn    func(context.Context, *message.Message) error
	}{
		"Permanent outside of poison":  {standard().Before(middleware.StepPoison, step(bus.Permanent(errHandler))), fails},
		"the last try, without poison": {standard(func(c *middleware.Config) { c.Retry = bus.OneTry() }).Without(middleware.StepPoison), fails},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen breakers
				s := serve(t, newBus(t, nil, c.stack, &seen), rawHandler("ledger", c.fn))
				s.publish("a", "b", "c")
				s.idle()
				require.Len(t, s.poisoned("ledger"), 3)
				require.Zero(t, s.stats("ledger").Redelivered)
				require.Empty(t, seen.all())
			})
		})
	}
}

// A Redelivery without an error is a snooze, and no crash.
func TestRedelivery_withoutAnErrorCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(context.Context, *message.Message) error {
			if n++; n < 20 {
				return &bus.Redelivery{After: time.Second}
			}
			return nil
		}))
		s.publish("a")
		s.idle()
		require.Empty(t, s.poisoned("ledger"))
		require.EqualValues(t, 1, s.stats("ledger").Handled)
	})
}

func TestIdle_endsWhereADuplicateWasRedeliveredForAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(context.Context, *message.Message) error {
			if n++; n <= 2 {
				return errAway
			}
			return nil
		}, policy(bus.RetryPolicy{Delays: []time.Duration{5 * time.Second, 5 * time.Second}}), func(h *bus.Handler) { h.Concurrency = 1 }))
		for _, id := range []string{"a", "b"} { // two messages that are one fact
			require.NoError(t, s.bus.Publish(t.Context(), placedV1{OrderID: "x"}, bus.WithID(id), bus.WithHeader("ce_dedupkey", "k")))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.NoError(t, s.bus.Idle(ctx))
	})
}

// foreignContext is an observer that returns a context of its own.
type foreignContext struct{ audience }

func (*foreignContext) Started(context.Context, *bus.Delivery) context.Context {
	return context.Background()
}

func TestObservers_keepTheDeliveryWhateverContextTheyReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, newBus(t, nil, standard(), &foreignContext{}), rawHandler("ledger", func(context.Context, *message.Message) error {
			return bus.Permanent(errHandler)
		}))
		s.publish("a")
		s.idle()
		require.Len(t, s.poisoned("ledger"), 1)
		require.Zero(t, s.stats("ledger").Redelivered)
	})
}
