package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// These tests check the steps together: the standard stack with its default policy on the memory transport, half
// an hour of delays in virtual time.

// defaultTries returns the numbers of attempt and try of the default policy.
func defaultTries() (attempts, tries []int) {
	return []int{1, 1, 1, 1, 2, 3, 4, 5}, []int{1, 2, 3, 4, 5, 6, 7, 8}
}

// requirePolicy checks that the tries of a handler follow the default policy, up to n times.
func requirePolicy(t *testing.T, got []try, n int) {
	t.Helper()
	attempts, tries := defaultTries()
	require.Len(t, got, n)
	delays := bus.RetryPolicy{}.WithDefaults().Delays
	for i, g := range got {
		require.Equal(t, attempts[i], g.attempt, "try %d: %v", i+1, got)
		require.Equal(t, tries[i], g.try, "try %d: %v", i+1, got)
		if i > 0 {
			require.InEpsilon(t, delays[i-1], g.at-got[i-1].at, 0.101, "delay %d: %v", i, got)
		}
	}
}

func TestStack_poisonsAfterTheWholePolicy(t *testing.T) {
	for name, fail := range map[string]func() error{
		"with an error": func() error { return fmt.Errorf("charge: %w", errHandler) },
		"with a panic":  func() error { panic(errHandler) },
		"too slowly": func() error {
			time.Sleep(time.Nanosecond)
			return errHandler
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a audience
				d := newDiary()
				s := serve(t, newBus(t, nil, standard(), &a), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
					d.note(ctx)
					return fail()
				}, withoutBreaker))
				s.publish("id-1")
				s.idle()
				requirePolicy(t, d.all(), 8)
				require.Equal(t, []bus.Outcome{bus.Redelivered, bus.Redelivered, bus.Redelivered, bus.Redelivered, bus.Poisoned}, a.outcomes())
				require.ErrorIs(t, a.finished[4].Err, errHandler)
				require.Equal(t, 5, a.started)

				stats := s.stats("ledger")
				require.EqualValues(t, 4, stats.Redelivered)
				require.EqualValues(t, 1, stats.Poisoned)
				require.Zero(t, stats.Handled+stats.Duplicates+stats.Discarded+stats.Interrupted)
				require.Zero(t, stats.Outstanding())

				require.Len(t, s.poisoned("ledger"), 1)
				dead := s.poisoned("ledger")[0]
				require.Contains(t, dead.Fault.Text, "handler failed")
				require.Equal(t, 5, dead.Fault.Attempts)
				require.Equal(t, 8, dead.Fault.Tries)
				require.Equal(t, "shop.ledger", dead.Fault.Group)
				require.Equal(t, "ledger", dead.Fault.Handler)
				require.Equal(t, orderTopic, dead.Fault.Topic)
				require.WithinDuration(t, d.began, dead.Fault.FirstAt, 0)
				require.WithinDuration(t, time.Now(), dead.Fault.At, 0)
				require.NotZero(t, dead.Fault.PID)
				require.JSONEq(t, `{"order_id":"id-1","total":0}`, string(dead.Message.Payload))
				require.Equal(t, "id-1", driver.MessageID(dead.Message))
				require.Equal(t, bus.Running, s.bus.Health()[0].State)
			})
		})
	}
}

func TestStack_recoveredHandlerHandlesOnce(t *testing.T) {
	for _, failures := range []int{1, 2, 3, 4, 7} {
		t.Run(fmt.Sprintf("after %d failures", failures), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDiary()
				s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
					if d.note(ctx) <= failures {
						return errHandler
					}
					return nil
				}, withoutBreaker))
				s.publish("id-1")
				s.idle()
				requirePolicy(t, d.all(), failures+1)
				require.EqualValues(t, 1, s.stats("ledger").Handled)
				require.Empty(t, s.poisoned("ledger"))

				s.publish("id-1")
				s.idle()
				require.Len(t, d.all(), failures+1, "and not again")
				require.EqualValues(t, 1, s.stats("ledger").Duplicates)
			})
		})
	}
}

func TestStack_obeysTheHandlersErrors(t *testing.T) {
	type want struct {
		tries     int
		took      time.Duration
		outcomes  []bus.Outcome
		poisoned  int // tries in the fault; 0 means that it is not there
		discarded int
	}
	for name, c := range map[string]struct {
		fail func(n int) error
		want want
	}{
		"permanent": {
			func(int) error { return fmt.Errorf("charge: %w", bus.Permanent(errHandler)) },
			want{tries: 1, outcomes: []bus.Outcome{bus.Poisoned}, poisoned: 1},
		},
		"permanent at the second try": {
			func(n int) error {
				if n == 1 {
					return bus.RetryAfter(errHandler, 100*time.Millisecond)
				}
				return bus.Permanent(errHandler)
			},
			want{tries: 2, took: 100 * time.Millisecond, outcomes: []bus.Outcome{bus.Poisoned}, poisoned: 2},
		},
		"discard": {
			func(int) error { return fmt.Errorf("charge: %w", bus.Discard(errHandler)) },
			want{tries: 1, outcomes: []bus.Outcome{bus.Discarded}, discarded: 1},
		},
		"retry after a short while, in process": {
			func(n int) error {
				if n == 1 {
					return bus.RetryAfter(errHandler, time.Second)
				}
				return nil
			},
			want{tries: 2, took: time.Second, outcomes: []bus.Outcome{bus.Handled}},
		},
		"retry after a long while, by the transport": {
			func(n int) error {
				if n == 1 {
					return bus.RetryAfter(errHandler, 3*time.Hour)
				}
				return nil
			},
			want{tries: 2, took: 3 * time.Hour, outcomes: []bus.Outcome{bus.Redelivered, bus.Handled}},
		},
		"snooze": {
			func(n int) error {
				if n <= 3 {
					return bus.Snooze(time.Hour)
				}
				return nil
			},
			want{tries: 4, took: 3 * time.Hour, outcomes: []bus.Outcome{bus.Redelivered, bus.Redelivered, bus.Redelivered, bus.Handled}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a audience
				d := newDiary()
				s := serve(t, newBus(t, nil, standard(), &a), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
					return c.fail(d.note(ctx))
				}))
				s.publish("id-1")
				s.idle()
				require.Len(t, d.all(), c.want.tries)
				require.Equal(t, c.want.took, d.all()[c.want.tries-1].at, "exactly: these delays have no jitter")
				require.Equal(t, c.want.outcomes, a.outcomes())
				require.EqualValues(t, c.want.discarded, s.stats("ledger").Discarded)
				if c.want.poisoned == 0 {
					require.Empty(t, s.poisoned("ledger"))
				} else {
					require.Equal(t, c.want.poisoned, s.poisoned("ledger")[0].Fault.Tries)
					require.Equal(t, 1, s.poisoned("ledger")[0].Fault.Attempts)
				}
			})
		})
	}
}

func TestStack_snoozeIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, snoozes := newDiary(), 0
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			if snoozes++; snoozes <= 50 { // far beyond the policy and its crash limit
				require.Equal(t, 1, bus.DeliveryFrom(ctx).Attempt)
				return bus.Snooze(time.Minute)
			}
			d.note(ctx)
			return errHandler
		}, withoutBreaker))
		s.publish("id-1")
		s.idle()
		requirePolicy(t, d.all(), 8)
		require.Equal(t, 8, s.poisoned("ledger")[0].Fault.Tries)
		require.Equal(t, 5, s.poisoned("ledger")[0].Fault.Attempts)
	})
}

func TestStack_truncatesAHugePanic(t *testing.T) {
	for name, value := range map[string]any{
		"640 KB of invalid UTF-8": strings.Repeat("\xff\xfe\n", 213_333),
		"an error of 640 KB":      errors.New(strings.Repeat("größer\n", 80_000)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a audience
				s := serve(t, newBus(t, nil, standard(), &a), rawHandler("ledger", func(context.Context, *message.Message) error {
					panic(value)
				}, func(h *bus.Handler) { h.Retry = new(bus.OneTry()) }))
				s.publish("id-1")
				s.idle()
				dead := s.poisoned("ledger")[0]
				delete(dead.Message.Metadata, driver.HeaderFaultStack) // it does not travel
				for key, header := range dead.Message.Metadata {
					require.LessOrEqual(t, len(header), 1024, key)
					require.True(t, utf8.ValidString(header), key)
					require.NotContains(t, header, "\n", key)
					require.NotContains(t, header, "goroutine", key)
				}
				require.True(t, strings.HasPrefix(dead.Fault.Text, "panic: "))
				require.Equal(t, fmt.Sprintf("panic(%T)", value), dead.Fault.Class)
				var p *bus.PanicError
				require.ErrorAs(t, a.finished[0].Err, &p)
				require.Contains(t, p.Stack(), "composition_test.go", "the stack is for the log")
			})
		})
	}
}

// poisonAway is the memory transport with a poison queue that can't be reached for a while.
type poisonAway struct {
	bus.Transport
	away func() bool
}

func (p poisonAway) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	feed, err := p.Transport.Subscribe(ctx, s)
	return poisonAwayFeed{feed, p.away}, err
}

type poisonAwayFeed struct {
	driver.Receiver
	away func() bool
}

func (f poisonAwayFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	d, err := f.Receiver.Next(ctx)
	if err == nil {
		d.Settler = poisonAwaySettler{d.Settler, f.away}
	}
	return d, err
}

type poisonAwaySettler struct {
	driver.Settler
	away func() bool
}

func (s poisonAwaySettler) Poison(ctx context.Context, f driver.Fault) error {
	if s.away() {
		return errors.New("no route to the poison queue")
	}
	return s.Settler.Poison(ctx, f)
}

func TestStack_unreachablePoisonQueueLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var away atomic.Bool
		away.Store(true)
		d := newDiary()
		transport := poisonAway{memory.New(memory.Config{}), away.Load}
		s := serve(t, newBus(t, transport, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			d.note(ctx)
			return bus.Permanent(errHandler)
		}), rawHandler("audit", func(context.Context, *message.Message) error { return nil }))
		s.publish("id-1")
		time.Sleep(time.Minute)
		require.InDelta(t, 30, len(d.all()), 2, "every 2 seconds, and in no hot loop")
		require.Empty(t, s.poisoned("ledger"))
		require.Zero(t, s.stats("ledger").Poisoned)
		require.EqualValues(t, 1, s.stats("ledger").Outstanding(), "nothing is acked")
		health := s.bus.Health()
		require.Equal(t, bus.Degraded, health[0].State)
		require.Contains(t, health[0].Degraded["poison queue"], "no route to the poison queue")
		require.Equal(t, bus.Running, health[1].State)

		away.Store(false)
		s.idle()
		require.EqualValues(t, 1, s.stats("ledger").Poisoned)
		require.Equal(t, 1, s.poisoned("ledger")[0].Fault.Attempts, "that the queue was away costs the message nothing")
		require.Equal(t, bus.Running, s.bus.Health()[0].State)
	})
}

func TestStack_fullPoisonQueueLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{PoisonBytes: 15_000})
		s := serve(t, newBus(t, transport, standard()), rawHandler("ledger", func(context.Context, *message.Message) error {
			return bus.Permanent(errHandler)
		}))
		s.publish(strings.Repeat("a", 4000), strings.Repeat("b", 4000)) // once in the id, once in the payload
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, s.stats("ledger").Poisoned)
		require.Contains(t, s.bus.Health()[0].Degraded["poison queue"], "the poison queue is full; replay or drop what is in it")
		n, err := transport.PoisonQueue("shop.ledger").Drop(t.Context(), s.poisoned("ledger")[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		s.idle()
		require.EqualValues(t, 2, s.stats("ledger").Poisoned)
		require.Equal(t, bus.Running, s.bus.Health()[0].State)
	})
}

func TestStack_replayIsNoDuplicate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := true
		d := newDiary()
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, msg *message.Message) error {
			d.note(ctx)
			require.NotContains(t, msg.Metadata, driver.HeaderFaultError)
			if broken {
				return bus.Permanent(errHandler)
			}
			return nil
		}))
		s.publish("id-1")
		s.idle()
		broken = false
		n, err := s.bus.Transport().PoisonQueue("shop.ledger").Replay(t.Context(), s.poisoned("ledger")[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		synctest.Wait()
		require.EqualValues(t, 1, s.stats("ledger").Handled)
		require.Zero(t, s.stats("ledger").Duplicates)
		require.Equal(t, 1, d.all()[1].attempt)
		require.Empty(t, s.poisoned("ledger"))
	})
}

// waiting consumes the waiting message of a group.
func (s *service) waiting(group string) *driver.Delivery {
	s.Helper()
	feed, err := s.bus.Transport().Subscribe(s.Context(), driver.Subscription{Group: group, Topics: []string{"order.placed.*"}, Concurrency: 1})
	require.NoError(s, err)
	ctx, cancel := context.WithTimeout(s.Context(), time.Hour)
	defer cancel()
	d, err := feed.Next(ctx)
	require.NoError(s, err)
	return d
}

func TestStack_givesBackWaitingMessagesOnStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a audience
		d := newDiary()
		s := serve(t, newBus(t, nil, standard(), &a), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			d.note(ctx)
			return errHandler
		}, func(h *bus.Handler) {
			h.Retry = &bus.RetryPolicy{Delays: []time.Duration{10 * time.Minute}, InProcess: time.Hour}
		}))
		s.publish("id-1")
		synctest.Wait()
		began := time.Now()
		require.NoError(t, s.stop())
		require.Less(t, time.Since(began), time.Second, "nobody waits for a retry")
		require.Len(t, d.all(), 1)
		require.Zero(t, s.stats("ledger").Poisoned)
		require.Equal(t, []bus.Outcome{bus.Redelivered}, a.outcomes())
		require.Equal(t, 1, s.waiting("shop.ledger").Attempt, "it cost nothing")
	})
}

func TestStack_shutdownDoesNotPoison(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"that returns its context's error": func(ctx context.Context) error { return ctx.Err() },
		"that says permanent":              func(context.Context) error { return bus.Permanent(errHandler) },
		"that panics":                      func(context.Context) error { panic("cut short") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a audience
				s := serve(t, newBus(t, nil, standard(), &a), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
					<-ctx.Done()
					return fail(ctx)
				}, func(h *bus.Handler) { h.Timeout, h.Retry = time.Hour, new(bus.OneTry()) }))
				s.publish("id-1")
				synctest.Wait()
				require.NoError(t, s.stop())
				require.Equal(t, []bus.Outcome{bus.Interrupted}, a.outcomes())
				require.Empty(t, s.poisoned("ledger"))
				d := s.waiting("shop.ledger")
				require.Equal(t, 1, d.Attempt)
				require.Equal(t, "id-1", driver.MessageID(d.Message))
			})
		})
	}
}

func TestStack_poisonsMessagesThatKillTheProcess(t *testing.T) {
	for _, c := range []struct{ attempt, tries int }{{6, 1}, {7, 0}} { // 5 crashes
		synctest.Test(t, func(t *testing.T) {
			d := newDiary()
			aged := testenv.Changing{Transport: memory.New(memory.Config{}), Change: func(d *driver.Delivery) { d.Attempt += c.attempt - 1 }}
			s := serve(t, newBus(t, aged, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
				d.note(ctx)
				return errHandler
			}, policy(bus.OneTry())))
			s.publish("id-1")
			s.idle()
			require.Len(t, d.all(), c.tries)
			dead := s.poisoned("ledger")[0]
			require.Equal(t, c.attempt, dead.Fault.Attempts)
			if c.tries == 0 {
				require.Contains(t, dead.Fault.Text, "probably kills the process")
			}
		})
	}
}

func TestStack_timeoutIsPerTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			d.note(ctx)
			require.NoError(t, ctx.Err(), "a live context, at every try")
			<-ctx.Done()
			return ctx.Err()
		}, func(h *bus.Handler) {
			h.Retry = &bus.RetryPolicy{Delays: []time.Duration{time.Second, time.Minute}, Jitter: -1}
		}, withoutBreaker))
		s.publish("id-1")
		s.idle()
		require.Equal(t, []try{{0, 1, 1}, {31 * time.Second, 1, 2}, {(31 + 30 + 60) * time.Second, 2, 3}}, d.all())
		require.Contains(t, s.poisoned("ledger")[0].Fault.Text, "timed out after 30s: context deadline exceeded")
	})
}

func TestStack_stuckHandlerBlocksOneWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
			if driver.MessageID(msg) == "deaf" {
				time.Sleep(10 * time.Minute)
			}
			return nil
		}, func(h *bus.Handler) { h.Concurrency = 2 }))
		s.publish("deaf", "a", "b")
		time.Sleep(5 * time.Minute)
		require.EqualValues(t, 2, s.stats("ledger").Handled)
		require.EqualValues(t, 1, s.stats("ledger").InFlight)
		require.Equal(t, bus.Degraded, s.bus.Health()[0].State)
		require.Contains(t, s.bus.Health()[0].Degraded["handler"], "message deaf")
		s.idle()
		require.EqualValues(t, 3, s.stats("ledger").Handled, "late is not failed")
		require.Equal(t, bus.Running, s.bus.Health()[0].State)
	})
}

func TestStack_goexitIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a audience
		d := newDiary()
		s := serve(t, newBus(t, nil, standard(), &a), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			if d.note(ctx) <= 2 {
				runtime.Goexit()
			}
			return nil
		}))
		s.publish("id-1")
		s.idle()
		require.Equal(t, []bus.Outcome{bus.Redelivered, bus.Redelivered, bus.Handled}, a.outcomes())
		require.ErrorContains(t, a.finished[0].Err, "runtime.Goexit")
		require.EqualValues(t, 1, s.stats("ledger").Handled)
		require.Zero(t, s.stats("ledger").Duplicates, "its claim was released")
	})
}

func TestStack_repeatedGoexitPoisons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDiary()
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
			d.note(ctx)
			runtime.Goexit()
			return nil
		}))
		s.publish("id-1")
		s.idle()
		require.Len(t, d.all(), 8, "the policy's tries")
		require.Len(t, s.poisoned("ledger"), 1)
	})
}

// TestGoexit_hasThePolicyOfTheStack checks that the stack's policy applies if the handler sets none.
func TestGoexit_hasThePolicyOfTheStack(t *testing.T) {
	policy := bus.RetryPolicy{Delays: []time.Duration{time.Second, 2 * time.Second}}
	goexit := func(err error) bool { return errors.Is(err, bus.ErrGoexit) }
	for name, c := range map[string]struct {
		rules []bus.RetryRule
		tries int
	}{
		"the step's policy": {nil, 3},
		"a rule's":          {[]bus.RetryRule{{Match: goexit, Policy: &bus.RetryPolicy{Delays: []time.Duration{time.Second}}}}, 2},
		"none":              {[]bus.RetryRule{{Match: goexit}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDiary()
				stack := middleware.NewStack(middleware.Use("poison", middleware.Poison(middleware.PoisonConfig{})), middleware.Use("retry", middleware.Retry(policy, c.rules...)))
				s := serve(t, newBus(t, nil, stack), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
					d.note(ctx)
					runtime.Goexit()
					return nil
				}))
				s.publish("id-1")
				s.idle()
				require.Len(t, d.all(), c.tries)
				require.Len(t, s.poisoned("ledger"), 1)
			})
		})
	}
}

func TestStack_failedHandlerPublishesNothing(t *testing.T) {
	for name, fail := range map[string]func() error{
		"failed for good": func() error { return bus.Permanent(errHandler) },
		"every time":      func() error { return errHandler },
		"discarded":       func() error { return bus.Discard(errHandler) },
		"snoozed":         func() error { return bus.Snooze(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", nil, func(h *bus.Handler) {
					h.Bind = func(encoder bus.Encoder) message.HandlerFunc {
						return func(msg *message.Message) ([]*message.Message, error) {
							if n++; n > 20 {
								return nil, nil
							}
							produced, err := encoder.Encode(msg.Context(), placedV3{})
							require.NoError(t, err)
							return []*message.Message{produced}, fail()
						}
					}
					h.Topics = []string{orderTopic}
				}), rawHandler("audit", func(context.Context, *message.Message) error { return nil }, func(h *bus.Handler) {
					h.Topics = []string{"order.placed.v3"}
				}))
				s.publish("id-1")
				s.idle()
				require.Zero(t, s.stats("audit").Expected)
				require.EqualValues(t, 1, s.bus.Stats().Published)
			})
		})
	}
}

func TestStack_poisonsTheOriginalMessage(t *testing.T) {
	const v1 = `{"order_id": "o-1",  "total": 12.5}`
	lift := middleware.Upcast(func(old placedV1) placedV2 { return placedV2{OrderID: old.OrderID, Cents: int64(old.Total * 100)} })
	synctest.Test(t, func(t *testing.T) {
		stack := standard(func(c *middleware.Config) { c.Upcasters = []middleware.Upcaster{lift} })
		var seen []placedV2
		s := serve(t, newBus(t, nil, stack), handlers.Func("ledger", func(_ context.Context, e placedV2) error {
			seen = append(seen, e)
			return errHandler
		}, withoutBreaker))
		require.NoError(t, s.bus.PublishMessages(t.Context(), &message.Message{
			UUID: "id-1", Payload: []byte(v1), Metadata: message.Metadata{driver.HeaderType: orderTopic, "tenant": "acme"},
		}))
		s.idle()
		require.Len(t, seen, 8)
		for _, e := range seen {
			require.Equal(t, placedV2{OrderID: "o-1", Cents: 1250}, e, "lifted at every try")
		}
		dead := s.poisoned("ledger")[0]
		require.Equal(t, v1, string(dead.Message.Payload), "byte for byte")
		require.Equal(t, orderTopic, dead.Message.Metadata[driver.HeaderType])
		require.Equal(t, "acme", dead.Message.Metadata["tenant"])
		driver.ClearFault(dead.Message.Metadata)
		for key := range dead.Message.Metadata {
			require.NotContains(t, key, "fault")
		}
	})
}

func TestStack_accountsForEveryMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kinds := []string{"good", "flaky", "broken", "panics", "permanent", "discard", "snooze"}
		tries := map[string]int{}
		s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
			id := driver.MessageID(msg)
			tries[id]++
			switch kind, _, _ := strings.Cut(id, "-"); {
			case kind == "flaky" && tries[id] <= 2, kind == "broken":
				return errHandler
			case kind == "panics":
				panic(id)
			case kind == "permanent":
				return bus.Permanent(errHandler)
			case kind == "discard":
				return bus.Discard(errHandler)
			case kind == "snooze" && tries[id] == 1:
				return bus.Snooze(time.Second)
			default:
				return nil
			}
		}, func(h *bus.Handler) { h.Concurrency = 1 }))
		const n = 20
		for i := range n {
			for _, kind := range kinds {
				s.publish(fmt.Sprintf("%s-%d", kind, i))
			}
			s.publish(fmt.Sprintf("good-%d", i)) // a duplicate
		}
		s.idle()
		stats := s.stats("ledger")
		require.EqualValues(t, 3*n, stats.Handled)
		require.EqualValues(t, n, stats.Duplicates)
		require.EqualValues(t, 3*n, stats.Poisoned)
		require.EqualValues(t, n, stats.Discarded)
		require.EqualValues(t, 8*n, stats.Settled)
		require.Zero(t, stats.Outstanding())
		require.Len(t, s.poisoned("ledger"), 3*n)
	})
}
