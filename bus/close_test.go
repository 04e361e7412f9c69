package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

// within returns a context that ends after d, by its deadline or by a cancellation.
func within(d time.Duration, cancelled bool) (context.Context, context.CancelFunc) {
	if !cancelled {
		return context.WithTimeout(context.Background(), d)
	}
	ctx, cancel := context.WithCancel(context.Background())
	timer := time.AfterFunc(d, cancel)
	return ctx, func() { timer.Stop(); cancel() }
}

func TestDrainAndClose_honourTheContextOfEachCaller(t *testing.T) {
	for name, c := range map[string]struct {
		stop      func(*bus.Bus, context.Context) error
		cancelled bool
		took      time.Duration
	}{
		"Drain by its deadline":     {(*bus.Bus).Drain, false, 3 * time.Second},
		"Drain by its cancellation": {(*bus.Bus).Drain, true, 5 * time.Second},
		"Close by its deadline":     {(*bus.Bus).Close, false, 3 * time.Second},
		"Close by its cancellation": {(*bus.Bus).Close, true, 5 * time.Second},
	} {
		for by, before := range map[string]func(*bus.Bus, context.Context) error{
			"alone": nil, "while another drains": (*bus.Bus).Drain, "while another closes": (*bus.Bus).Close,
		} {
			t.Run(name+", "+by, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := newBus(t, bus.Config{})
					var cause error
					handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
						<-ctx.Done()
						cause = context.Cause(ctx)
						return ctx.Err()
					})
					run(t, b)
					publish(t, b, "a")
					synctest.Wait()
					began := time.Now()
					if before != nil {
						go func() { _ = before(b, context.Background()) }()
						synctest.Wait()
					}
					ctx, cancel := within(5*time.Second, c.cancelled)
					defer cancel()
					require.NoError(t, c.stop(b, ctx))
					require.Equal(t, c.took, time.Since(began))
					require.ErrorIs(t, cause, bus.ErrInterrupted)
				})
			})
		}
	}
}

// The drain waits for what does not end; its callers do not.
func TestDrainAndClose_returnWhenTheirContextIsOverWhateverHappens(t *testing.T) {
	for name, stop := range map[string]func(*bus.Bus, context.Context) error{"Drain": (*bus.Bus).Drain, "Close": (*bus.Bus).Close} {
		for _, cancelled := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					transport := newFaulty()
					release := make(chan struct{})
					transport.subscribe = func(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
						<-release // heeds no context
						return transport.Transport.Subscribe(ctx, s)
					}
					b := busOver(t, transport, bus.Config{})
					handle(t, b, "ledger", ok)
					ran := make(chan error, 1)
					go func() { ran <- b.Run(t.Context()) }()
					synctest.Wait()
					began := time.Now()
					results := make(chan error, 2)
					for range 2 {
						go func() {
							ctx, cancel := within(5*time.Second, cancelled)
							defer cancel()
							results <- stop(b, ctx)
						}()
					}
					want := context.DeadlineExceeded
					if cancelled {
						want = context.Canceled
					}
					for range 2 {
						require.ErrorIs(t, <-results, want)
					}
					require.LessOrEqual(t, time.Since(began), 7*time.Second)
					close(release)
					if err := <-ran; err != nil {
						require.ErrorIs(t, err, bus.ErrClosed)
					}
				})
			})
		}
	}
}

func TestDrainAndClose_areRefusedInAHandler(t *testing.T) {
	for name, stop := range map[string]func(*bus.Bus, context.Context) error{"Drain": (*bus.Bus).Drain, "Close": (*bus.Bus).Close} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBus(t, bus.Config{})
				var err error
				handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
					err = stop(b, ctx)
					return nil
				})
				run(t, b)
				began := time.Now()
				publish(t, b, "a")
				require.NoError(t, b.Idle(t.Context()))
				require.ErrorContains(t, err, "in a handler")
				require.Zero(t, time.Since(began))
				publish(t, b, "b")
				require.NoError(t, b.Idle(t.Context()), "the bus goes on")
				require.EqualValues(t, 2, b.Stats().Groups["ledger"].Handled)

				other := newBus(t, bus.Config{})
				delivery := (&bus.Delivery{Delivery: driver.Delivery{Message: newMessage(paidTopic, "c")}}).NewContext(t.Context())
				require.NoError(t, stop(other, delivery), "another bus")
			})
		})
	}
}

// A feed that needs long to close.
type slowFeed struct{ driver.Receiver }

func (f slowFeed) Close(ctx context.Context) error {
	time.Sleep(5 * time.Second)
	return f.Receiver.Close(ctx)
}

func TestHealthAndStats_doNotBlockWhileFeedsClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := newFaulty()
		transport.subscribe = func(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
			feed, err := transport.Transport.Subscribe(ctx, s)
			return slowFeed{feed}, err
		}
		b := busOver(t, transport, bus.Config{})
		handle(t, b, "ledger", ok)
		run(t, b)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_ = b.Close(context.Background())
		}()
		time.Sleep(time.Second)
		asked := make(chan bus.State)
		go func() {
			_ = b.Stats()
			asked <- b.Health()[0].State
		}()
		began := time.Now()
		require.Equal(t, bus.Stopped, <-asked)
		require.Zero(t, time.Since(began))
		<-closed
	})
}

func TestIdle_endsAfterAPublishMiddlewareThatPanicked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := true
		b := newBus(t, bus.Config{Decorators: []message.PublisherDecorator{func(p message.Publisher) (message.Publisher, error) {
			return panicking{p, &panics}, nil
		}}})
		handle(t, b, "ledger", ok)
		run(t, b)
		require.Panics(t, func() { _ = b.Publish(t.Context(), orderPaid{}) })
		panics = false
		publish(t, b, "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, b.Idle(ctx))
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Expected)
		require.EqualValues(t, 1, b.Stats().Published)
	})
}

type panicking struct {
	message.Publisher
	panics *bool
}

func (p panicking) Publish(topic string, msgs ...*message.Message) error {
	if *p.panics {
		panic("a bug")
	}
	return p.Publisher.Publish(topic, msgs...)
}

func TestOrder_hasATextForEveryValue(t *testing.T) {
	for order, want := range map[bus.Order]string{
		bus.Unordered: "unordered", bus.OrderedByKey: "ordered by key", bus.OrderedStrictly: "ordered strictly", -1: "order -1", 7: "order 7",
	} {
		require.Equal(t, want, order.String())
	}
}

// What a transport that is not durable loses is counted, poison queues included.
func TestClose_countsWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testenv.Buffer
		b := newBus(t, bus.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		handle(t, b, "ledger", func(_ context.Context, msg *message.Message) error {
			if driver.MessageID(msg) == "bad" {
				return bus.Permanent(errors.New("no such account"))
			}
			return bus.RetryAfter(errors.New("not yet"), time.Hour)
		})
		stop := run(t, b)
		publish(t, b, "bad", "later", "later too")
		synctest.Wait()
		require.NoError(t, stop())
		require.NoError(t, b.Close(t.Context()))
		require.Contains(t, log.String(), "the transport is not durable\" waiting=2 poisoned=1")
	})
}
