package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
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
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// lost redelivers each message before the handler gets it, as if its consumer had died.
type lost struct {
	bus.Transport
	times int
}

func (l lost) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	feed, err := l.Transport.Subscribe(ctx, s)
	return lostFeed{feed, l.times}, err
}

type lostFeed struct {
	driver.Receiver
	times int
}

func (f lostFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	for {
		d, err := f.Receiver.Next(ctx)
		if err != nil || d.Attempt > f.times {
			return d, err
		}
		if err := d.Settler.Redeliver(0); err != nil {
			return nil, err
		}
	}
}

func TestRetry_countsFailuresNotDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		s := serve(t, newBus(t, lost{memory.New(memory.Config{}), 4}, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			if d.note(ctx) < 8 {
				return errHandler
			}
			return nil
		}, withoutBreaker))
		s.publish("id-1")
		s.idle()
		require.Len(t, d.all(), 8, "four lost consumers cost no try")
		require.Equal(t, 5, d.all()[0].attempt)
		require.Empty(t, s.poisoned("ledger"))
	})
}

func TestRetry_keepsItsTriesWhereTheHandlerAsksForADelay(t *testing.T) {
	for _, asked := range []time.Duration{100 * time.Millisecond, 2 * time.Second, time.Hour} {
		t.Run(asked.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDiary()
				s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
					d.note(ctx)
					return bus.RetryAfter(errHandler, asked)
				}, withoutBreaker))
				s.publish("id-1")
				s.idle()
				require.Len(t, d.all(), 8)
				delays := bus.RetryPolicy{}.WithDefaults().Delays
				for i, try := range d.all()[1:] {
					require.GreaterOrEqual(t, try.at-d.all()[i].at, max(asked, delays[i]*89/100), "the delay is a minimum")
				}
			})
		})
	}
}

// TestPoison_retriesStepsThatStandOutsideOfRetry uses the position of the README for a user's step: outside of retry.
func TestPoison_retriesStepsThatStandOutsideOfRetry(t *testing.T) {
	for name, c := range map[string]struct {
		before string
		fail   func() error
	}{
		"inside of poison, an error":  {middleware.StepRetry, func() error { return errHandler }},
		"inside of poison, a panic":   {middleware.StepRetry, func() error { panic(errHandler) }},
		"outside of poison, an error": {middleware.StepPoison, func() error { return errHandler }},
		"outside of poison, a panic":  {middleware.StepPoison, func() error { panic(errHandler) }},
		"outside of all, a panic":     {middleware.StepObserve, func() error { panic(errHandler) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failing atomic.Int64
				var handled atomic.Int64
				tenant := func(next message.HandlerFunc) message.HandlerFunc {
					return func(msg *message.Message) ([]*message.Message, error) {
						if id := driver.MessageID(msg); id == "bad" || id == "once" && failing.Add(1) == 1 {
							return nil, c.fail()
						}
						return next(msg)
					}
				}
				s := serve(t, newBus(t, nil, standard().Before(c.before, middleware.Use("tenant", tenant))),
					rawHandler("ledger", func(context.Context, *message.Message) error {
						handled.Add(1)
						return nil
					}, withoutBreaker))
				s.publish("bad", "once", "good")
				s.idle()
				require.EqualValues(t, 2, handled.Load(), "a transient error poisons nothing")
				require.Len(t, s.poisoned("ledger"), 1, "and a lasting one does not loop")
				require.EqualValues(t, 1, s.stats("ledger").Poisoned)
				require.EqualValues(t, 8, s.stats("ledger").Redelivered, "seven of the bad message")
			})
		})
	}
}

func TestPoison_sparesMessagesWhileAStepOutsideOfRetryFailsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		away.Store(true)
		tenant := func(next message.HandlerFunc) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				time.Sleep(10 * time.Millisecond)
				if away.Load() {
					return nil, errAway
				}
				return next(msg)
			}
		}
		s := serve(t, newBus(t, nil, standard().Before(middleware.StepRetry, middleware.Use("tenant", tenant))),
			rawHandler("ledger", func(context.Context, *message.Message) error { return nil }))
		for i := range 500 {
			s.publish(orderID(i))
		}
		time.Sleep(2 * time.Hour)
		away.Store(false)
		s.idle()
		require.Empty(t, s.poisoned("ledger"))
		require.EqualValues(t, 500, s.stats("ledger").Handled)
	})
}

// panicking is an observer that panics in one of its methods.
type panicking struct{ in string }

func (p panicking) Published(context.Context, bus.Publication) { p.panic("Published") }
func (p panicking) Started(ctx context.Context, _ *bus.Delivery) context.Context {
	p.panic("Started")
	return ctx
}
func (p panicking) Finished(context.Context, *bus.Delivery, bus.Observation) { p.panic("Finished") }
func (p panicking) BreakerChanged(bus.BreakerChange)                         { p.panic("BreakerChanged") }

func (p panicking) panic(in string) {
	if p.in == in {
		panic("the observer is broken")
	}
}

func TestObservers_decideNoOutcome(t *testing.T) {
	for _, in := range []string{"Published", "Started", "Finished"} {
		t.Run(in, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ran atomic.Int64
				var seen audience
				s := serve(t, newBus(t, nil, standard(), panicking{in}, &seen), rawHandler("ledger", func(context.Context, *message.Message) error {
					ran.Add(1)
					return nil
				}, func(h *bus.Handler) { h.Dedup = bus.DedupOff }))
				s.publish("a", "b")
				s.idle()
				require.EqualValues(t, 2, ran.Load())
				require.Equal(t, []bus.Outcome{bus.Handled, bus.Handled}, seen.outcomes(), "other observers see everything")
				require.EqualValues(t, 2, s.bus.Stats().ObserverPanics)
			})
		})
	}
}

// TestBreaker_probesThatDoNotEnd checks that a paused group resumes after faulty probes.
func TestBreaker_probesThatDoNotEnd(t *testing.T) {
	for name, hang := range map[string]func(release chan struct{}){
		"the handler ends its goroutine": func(chan struct{}) { runtime.Goexit() },
		"the handler hangs":              func(release chan struct{}) { <-release },
		"the handler panics":             func(chan struct{}) { panic("nil map") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen breakers
				var away atomic.Bool
				away.Store(true)
				release := make(chan struct{})
				var once sync.Once
				free := func() { once.Do(func() { close(release) }) }
				t.Cleanup(free)
				s := serve(t, newBus(t, nil, standard(), &seen), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
					switch {
					case away.Load():
						return errAway
					case strings.HasPrefix(driver.MessageID(msg), "x"):
						hang(release)
					}
					return nil
				}))
				for i := range 15 {
					s.publish(fmt.Sprintf("x%d", i%3), orderID(i))
				}
				time.Sleep(10 * time.Minute)
				require.NotZero(t, seen.count(bus.BreakerOpen))
				away.Store(false)
				for i := range 50 {
					s.publish(fmt.Sprintf("good-%d", i))
				}
				time.Sleep(time.Hour)
				require.Equal(t, 1, seen.count(bus.BreakerClosed))
				require.EqualValues(t, 65, s.stats("ledger").Handled)
				free()
			})
		})
	}
}

// Under synctest failures happen at one instant.
func TestBreaker_needsNoTimeBetweenFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen breakers
		s := serve(t, newBus(t, nil, standard(), &seen), rawHandler("ledger", func(context.Context, *message.Message) error { return errAway },
			func(h *bus.Handler) { h.Concurrency = 20 }))
		for i := range 20 {
			s.publish(orderID(i))
		}
		time.Sleep(2 * time.Hour)
		require.Empty(t, s.poisoned("ledger"))
		require.NotZero(t, seen.count(bus.BreakerOpen))
	})
}

// nilError is a pointer type whose nil is returned as an error, the classic mistake.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

func TestPoison_takesANilPointerForAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			d.note(ctx)
			var e *nilError
			return e
		}, withoutBreaker))
		s.publish("a")
		s.idle()
		require.Len(t, d.all(), 8)
		dead := s.poisoned("ledger")
		require.Len(t, dead, 1)
		require.Equal(t, "<nil>", dead[0].Fault.Text)
		require.Equal(t, "*middleware_test.nilError", dead[0].Fault.Class)
	})
}

var errSlow = errors.New("the poison queue is slow")

// slowSettler records its calls, and its poison queue needs eight seconds.
type slowSettler struct {
	driver.Settler
	mu    *sync.Mutex
	calls *[]string
}

func (s slowSettler) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.calls = append(*s.calls, call)
}

func (s slowSettler) Poison(ctx context.Context, f driver.Fault) error {
	s.note("poison")
	time.Sleep(8 * time.Second)
	s.note("confirmed")
	return s.Settler.Poison(ctx, f)
}

func (s slowSettler) GiveBack(after time.Duration) error {
	s.note("give back")
	return s.Settler.GiveBack(after)
}

func TestDrain_settlesAMessageOnceThatIsBeingPoisoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls []string
		var mu sync.Mutex
		slow := testenv.Changing{Transport: kept{memory.New(memory.Config{})}, Change: func(d *driver.Delivery) { d.Settler = slowSettler{d.Settler, &mu, &calls} }}
		b, err := bus.New(slow, bus.Config{Service: "shop", Stack: standard(), DrainTimeout: 2 * time.Second})
		require.NoError(t, err)
		t.Cleanup(func() { _ = b.Close(context.Background()) })
		s := serve(t, b, rawHandler("ledger", func(context.Context, *message.Message) error { return bus.Permanent(errSlow) }))
		s.publish("a")
		time.Sleep(time.Second)
		_ = s.stop()
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		require.Equal(t, []string{"poison", "confirmed"}, calls)
		require.Len(t, s.poisoned("ledger"), 1)
	})
}

// A step may change a message's headers while the health and a drain name it.
func TestDrain_namesMessagesWhoseHeadersChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
			for range 400 {
				time.Sleep(10 * time.Millisecond)
				msg.Metadata["changed"] = "yes"
			}
			return nil
		}, func(h *bus.Handler) { h.Timeout = -1 }))
		s.publish("a")
		time.Sleep(time.Millisecond)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 300 {
				s.bus.Health()
				time.Sleep(10 * time.Millisecond)
			}
		}()
		require.NoError(t, s.stop())
		<-done
	})
}

// Four tries of 30 s each take longer than one may.
func TestHealth_countsTheTimeOfOneTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			<-ctx.Done()
			return ctx.Err()
		}, withoutBreaker))
		s.publish("a")
		for range 119 {
			time.Sleep(time.Second)
			require.Equal(t, bus.Running, s.bus.Health()[0].State)
		}
	})
}
