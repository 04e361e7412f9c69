package bus_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// overGoChannel returns a bus over Watermill's in-memory Pub/Sub.
func overGoChannel() (bus.Transport, *gochannel.GoChannel) {
	pubSub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	return bus.Watermill{
		Publisher:  pubSub,
		Subscriber: func(string) (message.Subscriber, error) { return pubSub, nil },
	}.Transport(), pubSub
}

// poisonStack poisons whatever fails.
type poisonStack struct{}

func (poisonStack) Wrap(_ bus.Handler, next message.HandlerFunc) (message.HandlerFunc, error) {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := next(msg)
		if err == nil {
			return produced, nil
		}
		return nil, bus.DeliveryFrom(msg.Context()).GiveUp(err, nil)
	}, nil
}

func TestWatermill_runsABus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport, _ := overGoChannel()
		b := busOver(t, transport, bus.Config{})
		var got orderPaid
		handle(t, b, "ledger", func(_ context.Context, msg *message.Message) error { return bus.JSON{}.Unmarshal(msg.Payload, &got) })
		handle(t, b, "mail", ok)
		stop := run(t, b)
		require.NoError(t, b.Publish(t.Context(), &orderPaid{OrderID: "o-1", Cents: 7}))
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, orderPaid{OrderID: "o-1", Cents: 7}, got)
		require.EqualValues(t, 1, b.Stats().Groups["mail"].Handled)
		require.NoError(t, stop())
		require.NoError(t, b.Close(t.Context()))
		require.ErrorIs(t, transport.Publish(t.Context(), paidTopic), bus.ErrClosed)
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestWatermill_countsFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport, _ := overGoChannel()
		b := busOver(t, transport, bus.Config{})
		began := time.Now()
		var attempts []int
		var at []time.Duration
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
			attempts = append(attempts, bus.DeliveryFrom(ctx).Attempt)
			at = append(at, time.Since(began))
			switch len(attempts) {
			case 1, 2:
				return errBroken
			case 3:
				return bus.Snooze(time.Minute)
			default:
				return nil
			}
		}, concurrency(1))
		run(t, b)
		publish(t, b, "a", "b")
		require.NoError(t, b.Idle(t.Context()))
		require.EqualValues(t, 2, b.Stats().Groups["ledger"].Handled)
		require.Contains(t, attempts, 2)
		require.Equal(t, time.Minute, at[len(at)-1].Round(time.Minute), "a snooze waits")
	})
}

func TestWatermill_poisonQueueIsATopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport, pubSub := overGoChannel()
		dead, err := pubSub.Subscribe(t.Context(), "shop.ledger.poison")
		require.NoError(t, err)
		b := busOver(t, transport, bus.Config{Stack: poisonStack{}})
		handle(t, b, "ledger", func(context.Context, *message.Message) error { return errBroken })
		run(t, b)
		publish(t, b, "a")
		require.NoError(t, b.Idle(t.Context()))
		msg := <-dead
		msg.Ack()
		fault := driver.FaultOf(msg.Metadata)
		require.Equal(t, "the handler is broken", fault.Text)
		require.Equal(t, "shop.ledger", fault.Group)
		require.Equal(t, "ledger", fault.Handler)
		require.Equal(t, paidTopic, fault.Topic)
		require.Equal(t, 1, fault.Attempts)
		require.Equal(t, "a", driver.MessageID(msg))
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Poisoned)

		queue := transport.PoisonQueue("shop.ledger")
		_, err = queue.List(t.Context(), "", 10)
		require.ErrorIs(t, err, bus.ErrUnsupported)
		_, err = queue.Get(t.Context(), "1")
		require.ErrorIs(t, err, bus.ErrUnsupported)
		_, err = queue.Replay(t.Context(), "1")
		require.ErrorIs(t, err, bus.ErrUnsupported)
		_, err = queue.Drop(t.Context(), "1")
		require.ErrorIs(t, err, bus.ErrUnsupported)
		_, err = queue.Len(t.Context())
		require.ErrorIs(t, err, bus.ErrUnsupported)
	})
}

func TestWatermill_subscribesEachVersionOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport, _ := overGoChannel()
		b := busOver(t, transport, bus.Config{})
		handle(t, b, "ledger", ok, topics("order.paid.*"), func(h *bus.Handler) {
			h.Types = []bus.Type{{Name: "order.paid", Version: 1}, {Name: "order.paid", Version: 2}}
		})
		run(t, b)
		publish(t, b, "a")
		require.NoError(t, b.Idle(t.Context()))
		synctest.Wait()
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Handled)
	})
}

// lateSubscriber hands out a message while it is closed, as a Pub/Sub under load does.
type lateSubscriber struct{ out chan *message.Message }

func (s lateSubscriber) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return s.out, nil
}

func (s lateSubscriber) Close() error {
	s.out <- newMessage(paidTopic, "late")
	close(s.out)
	return nil
}

func TestWatermill_closesWhileMessagesCome(t *testing.T) {
	pubSub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	transport := bus.Watermill{
		Publisher: pubSub,
		Subscriber: func(string) (message.Subscriber, error) {
			return lateSubscriber{make(chan *message.Message)}, nil
		},
	}.Transport()
	for _, group := range []string{"a", "b"} {
		_, err := transport.Subscribe(t.Context(), driver.Subscription{Group: group, Topics: []string{paidTopic}, Known: []string{paidTopic}, Concurrency: 1})
		require.NoError(t, err)
	}
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- transport.Close(context.Background()) }()
	}
	for range 2 {
		select {
		case err := <-closed:
			require.NoError(t, err)
		case <-time.After(time.Minute):
			require.Fail(t, "Close never returns")
		}
	}
}

// Another process may finish a message that was nacked here: nobody acks it in this one.
func TestWatermill_remembersABoundedNumberOfAttempts(t *testing.T) {
	msgs := make(chan *message.Message)
	transport := bus.Watermill{
		Publisher:  gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{}),
		Subscriber: func(string) (message.Subscriber, error) { return channelSubscriber{msgs}, nil },
	}.Transport()
	feed, err := transport.Subscribe(t.Context(), driver.Subscription{Group: "g", Topics: []string{paidTopic}, Known: []string{paidTopic}, Concurrency: 1})
	require.NoError(t, err)
	deliver := func(id string) *driver.Delivery {
		msgs <- newMessage(paidTopic, id)
		d, err := feed.Next(t.Context())
		require.NoError(t, err)
		return d
	}
	require.NoError(t, deliver("a").Settler.Redeliver(0))
	require.Equal(t, 2, deliver("a").Attempt)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for i := range 100_000 {
		require.NoError(t, deliver(fmt.Sprint("elsewhere-", i)).Settler.Redeliver(0))
		if i%1000 == 0 {
			d := deliver("a")
			require.Equal(t, i/1000+2, d.Attempt, "what comes again is remembered")
			require.NoError(t, d.Settler.Redeliver(0))
		}
	}
	require.Less(t, heap()-before, int64(2<<20))
	close(msgs)
	require.NoError(t, transport.Close(t.Context()))
}

type channelSubscriber struct{ out chan *message.Message }

func (s channelSubscriber) Subscribe(context.Context, string) (<-chan *message.Message, error) {
	return s.out, nil
}

func (s channelSubscriber) Close() error { return nil }

func TestWatermill_rejectsUnsupportedFeatures(t *testing.T) {
	transport, _ := overGoChannel()
	b := busOver(t, transport, bus.Config{})
	require.ErrorContains(t, b.Handle(handler("audit", ok, topics("order.>"))), "name the topics one by one")
	require.ErrorContains(t, b.Handle(handler("ledger", ok, func(h *bus.Handler) { h.Order = bus.OrderedByKey })), "ordering by key")
	require.ErrorIs(t, b.Publish(t.Context(), orderPaid{}, bus.WithDelay(time.Second)), bus.ErrUnsupported)
}

func TestWatermill_failedSubscriberEndsRun(t *testing.T) {
	pubSub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	transport := bus.Watermill{
		Publisher:  pubSub,
		Subscriber: func(string) (message.Subscriber, error) { return nil, errBroken },
	}.Transport()
	b := busOver(t, transport, bus.Config{})
	handle(t, b, "ledger", ok)
	require.ErrorIs(t, b.Run(t.Context()), errBroken)
}

func TestWatermill_usesATransport(t *testing.T) {
	t.Run("publishes with its message's context, and does not mind who listens", func(t *testing.T) {
		transport := newFaulty()
		defer func() { require.NoError(t, transport.Close(t.Context())) }()
		var seen any
		transport.publish = func(ctx context.Context, _ string, _ []*message.Message) error {
			seen = ctx.Value(contextKey{})
			return nil
		}
		publisher := bus.NewPublisher(transport)
		msg := newMessage(paidTopic, "a")
		msg.SetContext(context.WithValue(t.Context(), contextKey{}, "acme"))
		require.NoError(t, publisher.Publish(paidTopic, msg))
		require.Equal(t, "acme", seen)
		require.NoError(t, publisher.Publish(paidTopic), "nothing is no error")
		require.NoError(t, publisher.Close())
		require.NoError(t, publisher.Publish(paidTopic, msg), "whoever opened the transport closes it")
	})
	t.Run("tells its failures", func(t *testing.T) {
		transport := newFaulty()
		defer func() { require.NoError(t, transport.Close(t.Context())) }()
		transport.publish = func(_ context.Context, topic string, _ []*message.Message) error {
			return &bus.UnroutableError{Topics: []string{topic}, Strict: true}
		}
		require.ErrorIs(t, bus.NewPublisher(transport).Publish(paidTopic, newMessage(paidTopic, "a")), bus.ErrUnroutable)
	})
	t.Run("subscribes each topic as a group, and counts nacks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			transport := newFaulty()
			defer func() { require.NoError(t, transport.Close(t.Context())) }()
			subscriber := bus.NewSubscriber(transport, "shop")
			msgs, err := subscriber.Subscribe(t.Context(), paidTopic)
			require.NoError(t, err)
			require.NoError(t, transport.Publish(t.Context(), paidTopic, newMessage(paidTopic, "a"), newMessage(paidTopic, "b")))
			for _, want := range []int{1, 2, 3} {
				msg := <-msgs
				require.Equal(t, "a", msg.UUID)
				require.Equal(t, want, bus.DeliveryFrom(msg.Context()).Attempt)
				require.Equal(t, "shop."+paidTopic, bus.DeliveryFrom(msg.Context()).Group)
				if want < 3 {
					msg.Nack()
				} else {
					msg.Ack()
				}
			}
			open := <-msgs
			require.Equal(t, "b", open.UUID)
			require.NoError(t, subscriber.Close())
			_, more := <-msgs
			require.False(t, more)
			require.Error(t, open.Context().Err())
			_, err = subscriber.Subscribe(t.Context(), paidTopic)
			require.ErrorIs(t, err, bus.ErrClosed)

			again, err := bus.NewSubscriber(transport, "shop").Subscribe(t.Context(), paidTopic)
			require.NoError(t, err)
			msg := <-again
			require.Equal(t, "b", msg.UUID, "what was not acked comes again")
			require.Equal(t, 1, bus.DeliveryFrom(msg.Context()).Attempt, "at no cost")
			msg.Ack()
			synctest.Wait()
		})
	})
}

func TestSubscriber_nackIsNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := newFaulty()
		defer func() { require.NoError(t, transport.Close(t.Context())) }()
		subscriber := bus.NewSubscriber(transport, "shop")
		msgs, err := subscriber.Subscribe(t.Context(), paidTopic)
		require.NoError(t, err)
		require.NoError(t, transport.Publish(t.Context(), paidTopic, newMessage(paidTopic, "a")))
		var pauses []time.Duration
		for last := time.Now(); len(pauses) < 10; last = time.Now() {
			msg := <-msgs
			pauses = append(pauses, time.Since(last))
			msg.Nack()
		}
		ms := time.Millisecond
		require.Equal(t, []time.Duration{0, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 10_000 * ms, 10_000 * ms}, pauses)
		require.NoError(t, subscriber.Close())
	})
}

func TestSubscriber_closeLetsAStockRouterFinish(t *testing.T) {
	for name, c := range map[string]struct {
		takes       time.Duration
		effects     int
		interrupted bool
	}{
		"a handler that needs 5 s is not disturbed": {takes: 5 * time.Second, effects: 1},
		"one that never ends is interrupted":        {takes: time.Hour, effects: 0, interrupted: true},
	} {
		for how := range 2 {
			t.Run(fmt.Sprint(name, ", ", []string{"closed", "by its context"}[how]), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					transport := newFaulty()
					defer func() { require.NoError(t, transport.Close(t.Context())) }()
					router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
					require.NoError(t, err)
					var effects atomic.Int32
					var cause error
					router.AddConsumerHandler("ledger", paidTopic, bus.NewSubscriber(transport, "shop"), func(msg *message.Message) error {
						select {
						case <-time.After(c.takes):
							effects.Add(1)
							return nil
						case <-msg.Context().Done():
							cause = msg.Context().Err()
							return cause
						}
					})
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					ran := make(chan error, 1)
					go func() { ran <- router.Run(ctx) }()
					<-router.Running()
					require.NoError(t, transport.Publish(t.Context(), paidTopic, newMessage(paidTopic, "a")))
					synctest.Wait()
					if how == 0 {
						require.NoError(t, router.Close())
					} else {
						cancel()
					}
					require.NoError(t, <-ran)
					require.EqualValues(t, c.effects, effects.Load())
					require.Equal(t, c.interrupted, errors.Is(cause, context.Canceled))
					groups, err := transport.Transport.(driver.Inspector).Groups(t.Context())
					require.NoError(t, err)
					require.Equal(t, 1-c.effects, groups[0].Waiting+groups[0].Delayed, "what was not handled comes again")
				})
			})
		}
	}
}

// The retry policy ends over a Pub/Sub that keeps no count of its own.
func TestWatermill_keepsTheCountOfFailures(t *testing.T) {
	channel := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	b := busOver(t, bus.Watermill{
		Publisher: channel, Subscriber: func(string) (message.Subscriber, error) { return channel, nil },
	}.Transport(), bus.Config{})
	var mu sync.Mutex
	var failures []int
	ended := make(chan struct{})
	handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
		d := bus.DeliveryFrom(ctx)
		mu.Lock()
		defer mu.Unlock()
		failures = append(failures, d.Failures)
		if len(failures) == 4 {
			close(ended)
			return nil
		}
		_, _, end := d.Failed(errBroken, bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}, InProcess: -1, Jitter: -1})
		if end != nil {
			return bus.Discard(end)
		}
		return &bus.Redelivery{After: time.Millisecond, Err: errBroken}
	})
	run(t, b)
	publish(t, b, "a")
	<-ended
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []int{0, 1, 2, 3}, failures)
}
