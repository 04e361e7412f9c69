package bus_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
)

// overGoChannel is Watermill's in-memory Pub/Sub under a bus.
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
		d := bus.DeliveryFrom(msg.Context())
		return nil, d.Poison(msg.Context(), bus.NewFault(d, err))
	}, nil
}

func TestABusRunsOverAWatermillPubSub(t *testing.T) {
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

func TestOverAWatermillPubSubFailuresComeAgainCounted(t *testing.T) {
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

func TestOverAWatermillPubSubThePoisonQueueIsATopic(t *testing.T) {
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
		fault := bus.FaultOf(msg.Metadata)
		require.Equal(t, "the handler is broken", fault.Text)
		require.Equal(t, "shop.ledger", fault.Group)
		require.Equal(t, "ledger", fault.Handler)
		require.Equal(t, paidTopic, fault.Topic)
		require.Equal(t, 1, fault.Attempts)
		require.Equal(t, "a", bus.MessageID(msg))
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

func TestOverAWatermillPubSubEachVersionIsSubscribedOnce(t *testing.T) {
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

func TestWhatAWatermillPubSubLacksIsRefused(t *testing.T) {
	transport, _ := overGoChannel()
	b := busOver(t, transport, bus.Config{})
	require.ErrorContains(t, b.Handle(handler("audit", ok, topics("order.>"))), "name the topics one by one")
	require.ErrorContains(t, b.Handle(handler("ledger", ok, func(h *bus.Handler) { h.Order = bus.OrderedByKey })), "ordering by key")
	require.ErrorIs(t, b.Publish(t.Context(), orderPaid{}, bus.Delay(time.Second)), bus.ErrUnsupported)
}

func TestAWatermillSubscriberThatCantBeMadeEndsRun(t *testing.T) {
	pubSub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	transport := bus.Watermill{
		Publisher:  pubSub,
		Subscriber: func(string) (message.Subscriber, error) { return nil, errBroken },
	}.Transport()
	b := busOver(t, transport, bus.Config{})
	handle(t, b, "ledger", ok)
	require.ErrorIs(t, b.Run(t.Context()), errBroken)
}

func TestATransportHandedOutToWatermill(t *testing.T) {
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
