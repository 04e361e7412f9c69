package amqp_test

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// TestWatermill_universalSuite runs Watermill's own suite over the transport as a plain Pub/Sub.
func TestWatermill_universalSuite(t *testing.T) {
	testenv.PatientWatermill()
	broker := sharedBroker(t)
	transport := open(t, broker)
	features := tests.Features{
		ConsumerGroups:                      true,
		GuaranteedOrder:                     true,
		GuaranteedOrderWithSingleSubscriber: true,
		Persistent:                          true,
	}
	prefix := unique("suite")
	tests.TestPubSub(t, features,
		func(t *testing.T) (message.Publisher, message.Subscriber) {
			return bus.NewPublisher(transport), bus.NewSubscriber(transport, prefix, bus.NackPause(time.Millisecond))
		},
		func(t *testing.T, group string) (message.Publisher, message.Subscriber) {
			return bus.NewPublisher(transport), bus.NewSubscriber(transport, prefix+"."+group, bus.NackPause(time.Millisecond))
		},
	)
	t.Cleanup(func() { closeAll(t, transport) })
}

// The stock names, tested both ways against plain Watermill services.

func TestWatermill_plainServiceGetsLeatsMessages(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, withOptions(broker, "topology=watermill"))
	topic := unique("order.paid.v1")
	t.Cleanup(func() { deleteExchange(t, broker, topic) })

	subscriber := stockSubscriber(t, broker, "plain")
	msgs, err := subscriber.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	defer deleteQueue(t, broker, topic+"_plain")
	sent := newMessage(topic, "a")
	sent.Metadata["custom"] = "kept"
	require.NoError(t, transport.Publish(t.Context(), topic, sent))

	got := receive(t, msgs)
	require.Equal(t, "a", got.UUID)
	require.Equal(t, sent.Payload, got.Payload)
	require.Equal(t, "kept", got.Metadata["custom"])
	require.Equal(t, topic, got.Metadata["cloudEvents_type"])
	got.Ack()
	closeAll(t, transport)
}

func TestWatermill_leatGetsMessagesOfAPlainService(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, withOptions(broker, "topology=watermill"))
	topic, other := unique("order.paid.v1"), unique("order.placed.v1")
	t.Cleanup(func() {
		deleteExchange(t, broker, topic)
		deleteExchange(t, broker, other)
	})
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic, other}, Concurrency: 2})

	publisher := stockPublisher(t, broker)
	sent := message.NewMessage("plain-1", []byte(`{"version":2}`))
	sent.Metadata = message.Metadata{"custom": "kept"}
	require.NoError(t, publisher.Publish(topic, sent))
	d := next(t, feed)
	require.Equal(t, "plain-1", d.Message.UUID)
	require.Equal(t, message.Metadata{"custom": "kept"}, d.Message.Metadata)
	require.Equal(t, topic, d.Topic)
	require.Equal(t, 1, d.Attempt)

	// Redelivery, delay and poison queue work on stock queues as well.
	for attempt := 2; attempt <= 4; attempt++ {
		require.NoError(t, d.Settler.Redeliver(150*millisecond))
		d = next(t, feed)
		require.Equal(t, attempt, d.Attempt)
		require.Equal(t, topic, d.Topic)
	}
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, context.Canceled)))
	poison := transport.PoisonQueue(d.Group)
	list, err := poison.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, list, 1)
	_, err = poison.Replay(t.Context(), list[0].ID)
	require.NoError(t, err)
	d = next(t, feed)
	require.Equal(t, topic, d.Topic)
	require.Equal(t, 1, d.Attempt)
	ack(t, d)

	require.NoError(t, publisher.Publish(other, message.NewMessage("plain-2", nil)))
	d = next(t, feed)
	require.Equal(t, other, d.Topic)
	ack(t, d)
	closeAll(t, transport)
}

func TestWatermill_sharesAGroup(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, withOptions(broker, "topology=watermill"))
	topic, group := unique("order.paid.v1"), unique("ledger")
	t.Cleanup(func() { deleteExchange(t, broker, topic) })
	stockSubscriberOf(t, broker, topic, group) // declares the queue first
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "a")
	require.Equal(t, "a", take(t, feed))
	_, err := transport.Subscribe(t.Context(), driver.Subscription{Group: group, Topics: []string{"order.>"}, Known: []string{topic}, Concurrency: 1})
	require.ErrorContains(t, err, "already")
	closeAll(t, transport)
}

// The faults of the stock parts, each beside leat's transport without it.

func TestStockFault_integerHeaderBlocksTheQueue(t *testing.T) {
	broker := sharedBroker(t)
	_, err := stock.DefaultMarshaler{}.Unmarshal(rabbit.Delivery{Headers: rabbit.Table{"retries": int32(3)}})
	require.Error(t, err, "the stock marshaler refuses it, and its subscriber nacks and gets it again for ever")

	transport := open(t, broker)
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	withBroker(t, broker, func(ch *rabbit.Channel) {
		require.NoError(t, ch.PublishWithContext(t.Context(), "events", topic, true, false, rabbit.Publishing{
			Body: []byte("{}"), Headers: rabbit.Table{"retries": int32(3)},
		}))
		d := next(t, feed)
		require.Equal(t, "3", d.Message.Metadata["retries"])
		require.NotEmpty(t, d.Message.UUID, "a name was made for it")
		ack(t, d)
	})
	closeAll(t, transport)
}

func TestStockFault_unroutableIsLost(t *testing.T) {
	broker := sharedBroker(t)
	topic := unique("order.payed.v1")
	cfg := stock.NewDurablePubSubConfig(broker, nil)
	cfg.Publish.ConfirmDelivery, cfg.Publish.Mandatory = true, true
	publisher, err := stock.NewPublisher(cfg, watermill.NopLogger{})
	require.NoError(t, err)
	defer func() { _ = publisher.Close() }()
	t.Cleanup(func() { deleteExchange(t, broker, topic) })
	require.NoError(t, publisher.Publish(topic, newMessage(topic, "lost")), "the stock publisher says that all is well")

	transport := open(t, withOptions(broker, "unroutable=error"))
	err = transport.Publish(t.Context(), topic, newMessage(topic, "noticed"))
	var unroutable *driver.UnroutableError
	require.ErrorAs(t, err, &unroutable)
	require.True(t, unroutable.Strict)
	require.EqualValues(t, 1, transport.Health().Unroutable)
	closeAll(t, transport)
}

func TestStockFault_deletedQueueDeliversAnEmptyMessage(t *testing.T) {
	broker := sharedBroker(t)
	topic := unique("order.paid.v1")
	t.Cleanup(func() { deleteExchange(t, broker, topic) })
	subscriber := stockSubscriber(t, broker, "plain")
	msgs, err := subscriber.Subscribe(t.Context(), topic)
	require.NoError(t, err)
	withBroker(t, broker, func(ch *rabbit.Channel) {
		eventually(t, "the stock subscriber consumes", func() bool {
			q, err := ch.QueueDeclarePassive(topic+"_plain", true, false, false, false, nil)
			require.NoError(t, err)
			return q.Consumers == 1
		})
	})
	deleteQueue(t, broker, topic+"_plain")
	ghost := receive(t, msgs)
	require.Empty(t, ghost.UUID, "a message that nobody published")
	require.Empty(t, ghost.Payload)
	ghost.Ack()
	eventually(t, "the stock subscriber is back", func() bool { return queueExists(t, broker, topic+"_plain") })
	deleteQueue(t, broker, topic+"_plain")
	// TestFaults_aQueueIsDeletedUnderItsConsumer shows leat's.
}

const millisecond = 1_000_000

func stockSubscriber(t *testing.T, broker, suffix string) message.Subscriber {
	t.Helper()
	cfg := stock.NewDurablePubSubConfig(broker, stock.GenerateQueueNameTopicNameWithSuffix(suffix))
	subscriber, err := stock.NewSubscriber(cfg, watermill.NopLogger{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = subscriber.Close() })
	return subscriber
}

// stockSubscriberOf declares a stock group's queue and goes away.
func stockSubscriberOf(t *testing.T, broker, topic, suffix string) {
	t.Helper()
	cfg := stock.NewDurablePubSubConfig(broker, stock.GenerateQueueNameTopicNameWithSuffix(suffix))
	subscriber, err := stock.NewSubscriber(cfg, watermill.NopLogger{})
	require.NoError(t, err)
	require.NoError(t, subscriber.SubscribeInitialize(topic))
	require.NoError(t, subscriber.Close())
}

func stockPublisher(t *testing.T, broker string) message.Publisher {
	t.Helper()
	publisher, err := stock.NewPublisher(stock.NewDurablePubSubConfig(broker, nil), watermill.NopLogger{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = publisher.Close() })
	return publisher
}

func receive(t *testing.T, msgs <-chan *message.Message) *message.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case msg := <-msgs:
		return msg
	case <-ctx.Done():
		t.Fatal("a message should have come")
		return nil
	}
}

func deleteQueue(t testing.TB, raw, name string) {
	t.Helper()
	withBroker(t, raw, func(ch *rabbit.Channel) {
		_, err := ch.QueueDelete(name, false, false, false)
		require.NoError(t, err)
	})
}

func queueExists(t testing.TB, raw, name string) (there bool) {
	t.Helper()
	withBroker(t, raw, func(ch *rabbit.Channel) {
		_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		there = err == nil
	})
	return there
}

var _ driver.Transport = (*amqp.Transport)(nil)
