package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

func TestRouter_handlesUpToItsConcurrency(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*bus.Handler)
		want   int
	}{
		"three":         {concurrency(3), 3},
		"ten, untold":   {func(*bus.Handler) {}, 10},
		"one, strictly": {func(h *bus.Handler) { h.Order = bus.OrderedStrictly }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus(t, bus.Config{})
				var running atomic.Int32
				release := make(chan struct{})
				handle(t, b, "ledger", func(context.Context, *message.Message) error {
					running.Add(1)
					<-release
					running.Add(-1)
					return nil
				}, c.change)
				run(t, b)
				for i := range 3 * c.want {
					publish(t, b, fmt.Sprint(i))
				}
				for range 2 * c.want {
					synctest.Wait()
					require.EqualValues(t, c.want, running.Load())
					require.EqualValues(t, c.want, b.Stats().Groups["ledger"].InFlight)
					release <- struct{}{}
				}
				close(release)
				require.NoError(t, b.Idle(t.Context()))
				require.Zero(t, running.Load())
			})
		})
	}
}

func TestRouter_withoutStackRedeliversWithGrowingDelays(t *testing.T) {
	for name, fail := range map[string]func() error{
		"that returns an error": func() error { return errBroken },
		"that panics":           func() error { panic("boom") },
		"that ends its goroutine": func() error {
			runtime.Goexit()
			return nil
		},
	} {
		t.Run("of a handler "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus(t, bus.Config{})
				began := time.Now()
				var at []time.Duration
				var attempts []int
				handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
					at = append(at, time.Since(began))
					attempts = append(attempts, bus.DeliveryFrom(ctx).Attempt)
					if len(at) < 10 {
						return fail()
					}
					return nil
				}, concurrency(1))
				run(t, b)
				publish(t, b, "a")
				require.NoError(t, b.Idle(t.Context()))
				require.Equal(t, []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, attempts)
				var want []time.Duration
				for seconds := range seq(0, 1, 3, 7, 15, 31, 63, 123, 183, 243) {
					want = append(want, time.Duration(seconds)*time.Second)
				}
				require.Equal(t, want, at, "1, 2, 4 … 32 seconds, then a minute")
				s := b.Stats().Groups["ledger"]
				require.EqualValues(t, 9, s.Redelivered)
				require.EqualValues(t, 1, s.Handled)
				require.Zero(t, s.InFlight)
			})
		})
	}
}

func seq(numbers ...int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for _, n := range numbers {
			if !yield(n) {
				return
			}
		}
	}
}

func TestRouter_keepsItsWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		var running atomic.Int32
		var ended sync.Map
		release := make(chan struct{})
		handle(t, b, "ledger", func(_ context.Context, msg *message.Message) error {
			if _, again := ended.LoadOrStore(msg.UUID, true); !again {
				runtime.Goexit()
			}
			running.Add(1)
			<-release
			return nil
		}, concurrency(2))
		run(t, b)
		publish(t, b, "a", "b", "c", "d", "e")
		time.Sleep(time.Minute)
		require.EqualValues(t, 2, running.Load())
		close(release)
		require.NoError(t, b.Idle(t.Context()))
		require.EqualValues(t, 5, running.Load())
	})
}

func TestRouter_publishesResultsBeforeTheAck(t *testing.T) {
	reply := func(err error) func(*bus.Handler) {
		return func(h *bus.Handler) {
			h.Bind = func(encoder bus.Encoder) message.HandlerFunc {
				return func(msg *message.Message) ([]*message.Message, error) {
					out, encodeErr := encoder.Encode(msg.Context(), placed{})
					return []*message.Message{out}, errors.Join(err, encodeErr)
				}
			}
		}
	}

	t.Run("with the correlation of the message handled", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", ok, reply(nil))
		var got bus.Envelope
		handle(t, b, "audit", func(ctx context.Context, _ *message.Message) error {
			got, _ = bus.EnvelopeFrom(ctx)
			return nil
		}, topics("order.placed.v1"))
		run(t, b)
		publish(t, b, "a")
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, "a", got.CausationID)
		require.Equal(t, "a", got.CorrelationID)
		require.EqualValues(t, 2, b.Stats().Published)
	})
	t.Run("and where that fails, the message comes again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			transport := newFaulty()
			var calls atomic.Int32
			transport.publish = func(_ context.Context, topic string, _ []*message.Message) error {
				if topic == "order.placed.v1" && calls.Add(1) <= 2 {
					return errBroken
				}
				return nil
			}
			b := busOver(t, transport, bus.Config{})
			handle(t, b, "ledger", ok, reply(nil))
			handle(t, b, "audit", ok, topics("order.placed.v1"))
			run(t, b)
			publish(t, b, "a")
			require.NoError(t, b.Idle(t.Context()))
			s := b.Stats().Groups
			require.EqualValues(t, 2, s["ledger"].Redelivered)
			require.EqualValues(t, 1, s["ledger"].Handled)
			require.EqualValues(t, 1, s["audit"].Handled)
		})
	})
	t.Run("but not when it failed", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", ok, reply(bus.Discard(errBroken)))
		handle(t, b, "audit", ok, topics("order.placed.v1"))
		run(t, b)
		publish(t, b, "a")
		require.NoError(t, b.Idle(t.Context()))
		require.Zero(t, b.Stats().Groups["audit"].Expected)
	})
}

func TestDrain_handlersFinishWithALiveContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
			<-bus.DeliveryFrom(ctx).Stopping()
			require.NoError(t, ctx.Err(), "the bus is stopping, and the handler may go on")
			require.NoError(t, b.Publish(ctx, placed{}), "and publish")
			time.Sleep(19 * time.Second)
			require.False(t, bus.DeliveryFrom(ctx).Interrupted())
			return ctx.Err()
		})
		handle(t, b, "audit", ok, topics("order.placed.v1"))
		stop := run(t, b)
		publish(t, b, "a")
		synctest.Wait()
		require.NoError(t, stop())
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Handled)
		require.EqualValues(t, 1, b.Stats().Groups["audit"].Handled, "what it published is handled, too")
		require.NoError(t, b.Close(t.Context()))
	})
}

func TestRun_contextGivesValuesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
			require.Equal(t, "acme", ctx.Value(contextKey{}))
			_, bounded := ctx.Deadline()
			require.False(t, bounded)
			return nil
		})
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), contextKey{}, "acme"), time.Minute)
		defer cancel()
		publish(t, b, "a")
		require.NoError(t, b.Run(ctx))
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Handled)
	})
}

func TestDrain_interruptionIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		var cause error
		var interruptedAt time.Duration
		var stopAt time.Time
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
			<-ctx.Done()
			cause, interruptedAt = context.Cause(ctx), time.Since(stopAt)
			require.True(t, bus.DeliveryFrom(ctx).Interrupted())
			return bus.Permanent(ctx.Err()) // whatever it says: it has not failed
		})
		stop := run(t, b)
		publish(t, b, "a")
		synctest.Wait()
		stopAt = time.Now()
		require.NoError(t, stop(), "it ended when it was told to")
		require.ErrorIs(t, cause, bus.ErrInterrupted)
		require.Equal(t, 20*time.Second, interruptedAt)
		s := b.Stats().Groups["ledger"]
		require.EqualValues(t, 1, s.Interrupted)
		require.Zero(t, s.Redelivered+s.Poisoned+s.Handled)
		require.EqualValues(t, 1, s.Outstanding())

		d := next(t, b, "shop.ledger")
		require.Equal(t, "a", d.Message.UUID, "it was given back")
		require.Equal(t, 1, d.Attempt, "at no cost")
	})
}

func TestDrain_interruptedHandlerMaySucceed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{DrainTimeout: time.Second})
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
			<-ctx.Done()
			return nil
		})
		stop := run(t, b)
		publish(t, b, "a")
		synctest.Wait()
		require.NoError(t, stop())
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Handled)
	})
}

func TestDrain_reportsHandlersThatIgnoreTheirContext(t *testing.T) {
	for name, c := range map[string]struct {
		stop func(b *bus.Bus, stop func() error) error
		took time.Duration
	}{
		"by Run":   {func(_ *bus.Bus, stop func() error) error { return stop() }, 21 * time.Second},
		"by Close": {func(b *bus.Bus, _ func() error) error { return b.Close(context.Background()) }, 21 * time.Second},
		"by Close, within its context": {func(b *bus.Bus, _ func() error) error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			return b.Close(ctx)
		}, 4 * time.Second},
		"by Run, which Close does not repeat": {func(b *bus.Bus, stop func() error) error {
			err := stop()
			require.NoError(t, b.Close(context.Background()))
			return err
		}, 21 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := newFaulty()
				b := busOver(t, transport, bus.Config{})
				release := make(chan struct{})
				handle(t, b, "deaf", func(context.Context, *message.Message) error {
					<-release
					return errBroken
				})
				handle(t, b, "quick", ok)
				stop := run(t, b)
				publish(t, b, "message-7")
				synctest.Wait()
				began := time.Now()
				err := c.stop(b, stop)
				require.ErrorContains(t, err, "deaf (message message-7)")
				require.ErrorContains(t, err, "their messages are lost, because the transport is not durable")
				require.NotContains(t, err.Error(), "quick")
				require.Equal(t, c.took, time.Since(began))
				close(release)
				synctest.Wait()
				require.Zero(t, b.Stats().Groups["deaf"].Poisoned)
			})
		})
	}
}

func TestDrain_givesBackAStuckHandlersMessageOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled log
		transport := newFaulty()
		transport.next = func(ctx context.Context, feed driver.Receiver) (*driver.Delivery, error) {
			d, err := feed.Next(ctx)
			if err == nil {
				d.Settler = logging{d.Settler, &settled}
			}
			return d, err
		}
		b := busOver(t, transport, bus.Config{})
		release := make(chan struct{})
		handle(t, b, "deaf", func(context.Context, *message.Message) error {
			<-release
			return nil
		})
		stop := run(t, b)
		publish(t, b, "a")
		synctest.Wait()
		require.Error(t, stop())
		require.Equal(t, []string{"given back"}, settled.all())
		close(release) // now it comes back after all
		synctest.Wait()
		require.Equal(t, []string{"given back"}, settled.all(), "it must not ack what may be another's delivery")
		require.Equal(t, 1, next(t, b, "shop.deaf").Attempt)
	})
}

// logging writes down how deliveries are settled.
type logging struct {
	driver.Settler
	log *log
}

func (l logging) Ack() error {
	l.log.add("acked")
	return l.Settler.Ack()
}

func (l logging) Redeliver(after time.Duration) error {
	l.log.add("redelivered")
	return l.Settler.Redeliver(after)
}

func (l logging) GiveBack(after time.Duration) error {
	l.log.add("given back")
	return l.Settler.GiveBack(after)
}

func TestDrain_givesBackLateMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := newFaulty()
		transport.next = func(ctx context.Context, feed driver.Receiver) (*driver.Delivery, error) {
			if d, err := feed.Next(ctx); err == nil {
				return d, nil
			}
			time.Sleep(20*time.Second + 500*time.Millisecond) // past the drain timeout
			return feed.Next(context.Background())
		}
		b := busOver(t, transport, bus.Config{})
		called := false
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			called = true
			return nil
		}, concurrency(1))
		stop := run(t, b)
		stopped := make(chan error)
		go func() { stopped <- stop() }()
		synctest.Wait()
		require.NoError(t, b.Transport().Publish(t.Context(), paidTopic, newMessage(paidTopic, "late")))
		require.NoError(t, <-stopped)
		require.False(t, called, "its context would be over")
		require.Equal(t, 1, next(t, b, "shop.ledger").Attempt)
	})
}

func TestDrain_handlesTheBacklogOfAVolatileTransport(t *testing.T) {
	slow := func(b *bus.Bus) func(context.Context, *message.Message) error {
		return func(context.Context, *message.Message) error {
			time.Sleep(time.Second)
			return nil
		}
	}
	t.Run("all of it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBus(t, bus.Config{})
			handle(t, b, "ledger", slow(b), concurrency(1))
			stop := run(t, b)
			for i := range 15 {
				publish(t, b, fmt.Sprint(i))
			}
			require.NoError(t, stop())
			require.EqualValues(t, 15, b.Stats().Groups["ledger"].Handled)
		})
	})
	t.Run("but takes nothing more in", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBus(t, bus.Config{})
			handle(t, b, "ledger", slow(b), concurrency(1))
			stop := run(t, b)
			publish(t, b, "a", "b")
			stopped := make(chan error)
			go func() { stopped <- stop() }()
			synctest.Wait()
			err := b.Publish(t.Context(), orderPaid{})
			require.ErrorIs(t, err, bus.ErrClosed)
			require.ErrorContains(t, err, "its transport would lose the message")
			require.NoError(t, <-stopped)
			require.EqualValues(t, 2, b.Stats().Groups["ledger"].Handled)
		})
	})
	t.Run("as far as the drain timeout goes, and Close says what is lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var lines log
			b := newBus(t, bus.Config{DrainTimeout: 4500 * time.Millisecond, Logger: warnings(&lines)})
			handle(t, b, "ledger", slow(b), concurrency(1))
			run(t, b)
			for i := range 15 {
				publish(t, b, fmt.Sprint(i))
			}
			require.NoError(t, b.Close(t.Context()))
			require.EqualValues(t, 5, b.Stats().Groups["ledger"].Handled)
			require.Len(t, lines.all(), 1)
			require.Contains(t, lines.all()[0], "waiting=10 poisoned=0")
		})
	})
	t.Run("but not what waits for a later time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var lines log
			b := newBus(t, bus.Config{Logger: warnings(&lines)})
			handle(t, b, "ledger", ok)
			stop := run(t, b)
			require.NoError(t, b.Publish(t.Context(), orderPaid{}, bus.WithDelay(time.Minute)))
			began := time.Now()
			require.NoError(t, stop())
			require.Less(t, time.Since(began), time.Second)
			require.NoError(t, b.Close(t.Context()))
			require.Contains(t, lines.all()[0], "waiting=1 poisoned=0")
		})
	})
}

func TestDrain_leavesTheBacklogOfADurableTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := newFaulty()
		caps := transport.Transport.Capabilities()
		caps.Durable = true
		transport.caps = &caps
		b := busOver(t, transport, bus.Config{})
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			time.Sleep(time.Second)
			return nil
		}, concurrency(1))
		stop := run(t, b)
		publish(t, b, "a", "b", "c")
		synctest.Wait()
		require.NoError(t, stop())
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Handled, "the one in the handler")
		require.NoError(t, b.Publish(t.Context(), orderPaid{}), "a message is safe there, whoever handles it")
	})
}

func TestClose_losesNothingUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		var handled sync.Map
		handle(t, b, "ledger", func(_ context.Context, msg *message.Message) error {
			time.Sleep(3 * time.Millisecond)
			_, twice := handled.LoadOrStore(msg.UUID, true)
			require.False(t, twice)
			return nil
		}, concurrency(4))
		run(t, b)
		var safe sync.Map
		var publishers sync.WaitGroup
		for p := range 4 {
			publishers.Go(func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("%d-%d", p, i)
					if err := b.Publish(context.Background(), orderPaid{}, bus.WithID(id)); err != nil {
						require.ErrorIs(t, err, bus.ErrClosed)
						return
					}
					safe.Store(id, true)
					time.Sleep(time.Millisecond)
				}
			})
		}
		time.Sleep(250 * time.Millisecond)
		require.NoError(t, b.Close(t.Context()))
		publishers.Wait()
		n := 0
		safe.Range(func(id, _ any) bool {
			_, ok := handled.Load(id)
			require.True(t, ok, "%s was safe, and is lost", id)
			n++
			return true
		})
		require.Greater(t, n, 100)
	})
}

func TestClose_concurrentCallsReturnTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		release := make(chan struct{})
		handle(t, b, "deaf", func(context.Context, *message.Message) error {
			<-release
			return nil
		})
		run(t, b)
		publish(t, b, "a")
		synctest.Wait()
		errs := make(chan error, 3)
		for range 3 {
			go func() { errs <- b.Close(context.Background()) }()
		}
		first := <-errs
		require.ErrorContains(t, first, "deaf")
		require.Equal(t, first, <-errs)
		require.Equal(t, first, <-errs)
		require.Equal(t, first, b.Close(t.Context()))
		close(release)
	})
}

func TestRun_logsTransportAndGroups(t *testing.T) {
	var text bytes.Buffer
	b := newBus(t, bus.Config{Logger: slog.New(slog.NewTextHandler(&text, nil))})
	handle(t, b, "ledger", ok)
	handle(t, b, "mail", ok)
	stop := run(t, b)
	require.NoError(t, stop())
	require.Contains(t, text.String(), `msg="leat: running" transport=memory groups="shop.ledger, shop.mail"`)
}

func TestRun_onlyOnce(t *testing.T) {
	t.Run("not twice at once", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		run(t, b)
		require.ErrorContains(t, b.Run(t.Context()), "a bus runs once")
	})
	t.Run("not again", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		require.NoError(t, run(t, b)())
		require.ErrorContains(t, b.Run(t.Context()), "a bus runs once")
	})
	t.Run("not after Close", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", ok)
		require.NoError(t, b.Close(t.Context()))
		require.ErrorIs(t, b.Run(t.Context()), bus.ErrClosed)
		require.NoError(t, b.Close(t.Context()))
	})
	t.Run("without a handler, until it is stopped", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		require.NoError(t, run(t, b)())
	})
}

func TestRun_endsIfAGroupCantSubscribe(t *testing.T) {
	transport := newFaulty()
	transport.subscribe = func(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
		if s.Group == "shop.second" {
			return nil, errBroken
		}
		return transport.Transport.Subscribe(ctx, s)
	}
	b := busOver(t, transport, bus.Config{})
	handle(t, b, "first", ok)
	handle(t, b, "second", ok)
	err := b.Run(t.Context())
	require.ErrorIs(t, err, errBroken)
	require.ErrorContains(t, err, `subscribe handler "second"`)
	select {
	case <-b.Running():
		t.Error("it never ran")
	default:
	}
	require.ErrorIs(t, b.Publish(t.Context(), orderPaid{}), errBroken, "an event that one of its groups would miss is not published")
	require.NoError(t, b.Close(t.Context()), "Run has told it")
}

func TestRun_waitsForTheTransport(t *testing.T) {
	blocked := func(t *testing.T) (*bus.Bus, chan error) {
		transport := newFaulty()
		transport.subscribe = func(ctx context.Context, _ driver.Subscription) (driver.Receiver, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		b := busOver(t, transport, bus.Config{})
		handle(t, b, "ledger", ok)
		ran := make(chan error, 1)
		go func() { ran <- b.Run(context.Background()) }()
		synctest.Wait()
		return b, ran
	}
	t.Run("can be closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, ran := blocked(t)
			closed := make(chan error, 1)
			go func() { closed <- b.Close(context.Background()) }()
			select {
			case err := <-closed:
				t.Log("closed:", err)
			case <-time.After(time.Hour):
				t.Fatal("Close hangs")
			}
			require.ErrorIs(t, <-ran, bus.ErrClosed)
		})
	})
	t.Run("says how it is", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b, ran := blocked(t)
			told := make(chan []bus.Health, 1)
			go func() {
				_ = b.Stats()
				_ = b.Handlers()
				told <- b.Health()
			}()
			synctest.Wait()
			select {
			case health := <-told:
				require.Equal(t, bus.Waiting, health[0].State)
			default:
				t.Error("Health hangs")
			}
			_ = b.Close(context.Background())
			t.Log("ran:", <-ran)
		})
	})
}

func TestRun_endsIfTheTransportFails(t *testing.T) {
	for name, failure := range map[string]error{
		"for a reason":                   errBroken,
		"because somebody has closed it": bus.ErrClosed,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				transport := newFaulty()
				fail := make(chan struct{})
				transport.next = func(ctx context.Context, feed driver.Receiver) (*driver.Delivery, error) {
					ctx, cancel := context.WithCancel(ctx)
					defer cancel()
					go func() {
						select {
						case <-fail:
							cancel()
						case <-ctx.Done():
						}
					}()
					d, err := feed.Next(ctx)
					select {
					case <-fail:
						return nil, failure
					default:
						return d, err
					}
				}
				b := busOver(t, transport, bus.Config{})
				finished := false
				handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
					time.Sleep(10 * time.Second)
					finished = ctx.Err() == nil
					return nil
				}, concurrency(1))
				ran := make(chan error, 1)
				go func() { ran <- b.Run(context.Background()) }()
				<-b.Running()
				publish(t, b, "a", "b")
				synctest.Wait()
				began := time.Now()
				close(fail)
				select {
				case err := <-ran:
					require.ErrorIs(t, err, failure)
					require.ErrorContains(t, err, `group "shop.ledger"`)
				case <-time.After(time.Hour):
					t.Error("Run goes on without workers")
				}
				require.True(t, finished, "the handler in flight has finished")
				require.Equal(t, 10*time.Second, time.Since(began).Round(time.Second), "what waits can't be worked off any more")
				require.Equal(t, bus.Stopped, b.Health()[0].State)
			})
		})
	}
}

func TestRouter_logsFailedAcks(t *testing.T) {
	var lines log
	transport := newFaulty()
	transport.next = func(ctx context.Context, feed driver.Receiver) (*driver.Delivery, error) {
		d, err := feed.Next(ctx)
		if err == nil {
			d.Settler = unackable{d.Settler}
		}
		return d, err
	}
	b := busOver(t, transport, bus.Config{Logger: warnings(&lines)})
	handle(t, b, "ledger", ok)
	run(t, b)
	publish(t, b, "a")
	require.NoError(t, b.Idle(t.Context()))
	require.Len(t, lines.all(), 1)
	require.Contains(t, lines.all()[0], "message_id=a")
	require.Contains(t, lines.all()[0], errBroken.Error())
}

type unackable struct{ driver.Settler }

func (u unackable) Ack() error { return errors.Join(errBroken, u.Settler.Ack()) }

func TestDrain_keepsTheTransportOpen(t *testing.T) {
	b := newBus(t, bus.Config{})
	handle(t, b, "ledger", ok)
	run(t, b)
	publish(t, b, "a")
	require.NoError(t, b.Drain(t.Context()))
	require.NoError(t, b.Drain(t.Context()), "twice is fine")
	require.EqualValues(t, 1, b.Stats().Groups["ledger"].Handled)
	_, err := b.Transport().PoisonQueue("shop.ledger").Len(t.Context())
	require.NoError(t, err)
	require.ErrorContains(t, b.Run(t.Context()), "a bus runs once")
}

func TestRun_leavesNoGoroutines(t *testing.T) {
	for i := range 50 {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", ok)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = b.Run(ctx) })
		wg.Go(func() { _ = b.Publish(ctx, orderPaid{}) })
		wg.Go(cancel)
		if i%2 == 0 {
			wg.Go(func() { _ = b.Close(context.Background()) })
		}
		wg.Wait()
		if err := b.Close(t.Context()); !errors.Is(err, bus.ErrClosed) && !errors.Is(err, context.Canceled) {
			require.NoError(t, err) // it may have been stopped before it had started
		}
	}
}
