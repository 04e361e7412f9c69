package amqp_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// enveloped is a marshaler that keeps everything in the body, as services have them that wrote their own.
type enveloped struct{}

type inEnvelope struct {
	ID      string            `json:"id"`
	Headers map[string]string `json:"headers"`
	Data    []byte            `json:"data"`
}

func (enveloped) Marshal(msg *message.Message) (rabbit.Publishing, error) {
	body, err := json.Marshal(inEnvelope{msg.UUID, msg.Metadata, msg.Payload})
	return rabbit.Publishing{Body: body}, err
}

func (enveloped) Unmarshal(d rabbit.Delivery) (*message.Message, error) {
	if len(d.Headers) > 0 {
		return nil, errors.New("a header that is not in the envelope")
	}
	var e inEnvelope
	if err := json.Unmarshal(d.Body, &e); err != nil {
		return nil, err
	}
	msg := message.NewMessage(e.ID, e.Data)
	msg.Metadata = e.Headers
	return msg, nil
}

// stockConfigs returns configurations of plain Watermill services. Names are unique to a test.
func stockConfigs(broker, exchange string) map[string]stock.Config {
	suffix := stock.GenerateQueueNameTopicNameWithSuffix("ledger")
	topics := stock.NewDurablePubSubConfig(broker, suffix) // one topic exchange, the topic as routing key
	topics.Exchange.GenerateName = func(string) string { return exchange }
	topics.Exchange.Type = "topic"
	topics.Publish.GenerateRoutingKey = func(topic string) string { return topic }
	topics.QueueBind.GenerateRoutingKey = func(queue string) string { return queue[:len(queue)-len("_ledger")] }

	quorum := stock.NewDurablePubSubConfig(broker, suffix)
	quorum.Queue.Arguments = rabbit.Table{"x-queue-type": "quorum"}
	quorum.Marshaler = stock.DefaultMarshaler{
		MessageUUIDHeaderKey: "uuid",
		PostprocessPublishing: func(p rabbit.Publishing) rabbit.Publishing {
			p.Headers["team"] = "billing"
			return p
		},
	}

	own := stock.NewDurablePubSubConfig(broker, suffix)
	own.Marshaler = enveloped{}
	return map[string]stock.Config{
		"durable Pub/Sub":     stock.NewDurablePubSubConfig(broker, suffix),
		"durable queue":       stock.NewDurableQueueConfig(broker),
		"one topic exchange":  topics,
		"quorum, own headers": quorum,
		"a marshaler":         own,
	}
}

// fromWatermill opens a transport with a service's configuration.
func fromWatermill(t *testing.T, c stock.Config) *amqp.Transport {
	t.Helper()
	cfg, err := amqp.FromWatermill(c, nil)
	require.NoError(t, err)
	transport, err := amqp.New(t.Context(), cfg)
	require.NoError(t, err)
	return transport
}

// A leat service takes the place of a plain Watermill service, as publisher and as consumer, and both run side by side.
func TestFromWatermill_sharesQueuesAndMessages(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	exchange := unique("shop")
	for name, c := range stockConfigs(broker, exchange) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := unique("order.paid.v1")
			queue := c.Queue.GenerateName(topic)
			t.Cleanup(func() {
				if exchange := c.Exchange.GenerateName(topic); exchange != "" {
					deleteExchange(t, broker, exchange)
				}
				deleteQueue(t, broker, queue)
			})

			// The plain service has made its queue, and messages wait there.
			subscriber, err := stock.NewSubscriber(c, watermill.NopLogger{})
			require.NoError(t, err)
			require.NoError(t, subscriber.SubscribeInitialize(topic))
			publisher, err := stock.NewPublisher(c, watermill.NopLogger{})
			require.NoError(t, err)
			defer func() { require.NoError(t, publisher.Close()) }()
			sent := message.NewMessage("plain-1", []byte(`{"total":5}`))
			sent.Metadata.Set("custom", "kept")
			require.NoError(t, publisher.Publish(topic, sent))

			transport := fromWatermill(t, c)
			feed := subscribe(t, transport, driver.Subscription{Group: unique("shop.ledger"), Topics: []string{topic}, Concurrency: 2})
			d := next(t, feed)
			require.Equal(t, "plain-1", d.Message.UUID)
			require.Equal(t, "kept", d.Message.Metadata["custom"])
			require.JSONEq(t, `{"total":5}`, string(d.Message.Payload))
			require.Equal(t, topic, d.Topic)
			require.Equal(t, 1, d.Attempt)

			// It fails, is redelivered, poisoned and replayed.
			require.NoError(t, d.Settler.Redeliver(1500*time.Millisecond))
			d = next(t, feed)
			require.Equal(t, 2, d.Attempt)
			require.Equal(t, topic, d.Topic)
			require.Equal(t, "kept", d.Message.Metadata["custom"])
			require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("no such account"))))
			poison := transport.PoisonQueue(d.Group)
			list, err := poison.List(t.Context(), "", 10)
			require.NoError(t, err)
			require.Len(t, list, 1)
			require.Equal(t, "plain-1", list[0].Message.UUID)
			require.Contains(t, list[0].Fault.Text, "no such account")
			require.NoError(t, poison.Put(t.Context(), list[0])) // as an edit does
			_, err = poison.Replay(t.Context(), list[0].ID)
			require.NoError(t, err)
			d = next(t, feed)
			require.Equal(t, topic, d.Topic)
			require.Equal(t, 1, d.Attempt)
			require.Equal(t, "kept", d.Message.Metadata["custom"])
			require.Empty(t, driver.FaultOf(d.Message.Metadata))
			ack(t, d)

			// With a delay, too.
			later := newMessage(topic, "later")
			later.Metadata[driver.HeaderDeliverAt] = time.Now().Add(1200 * time.Millisecond).Format(time.RFC3339Nano)
			require.NoError(t, transport.Publish(t.Context(), topic, later))
			d = next(t, feed)
			require.Equal(t, "later", driver.MessageID(d.Message))
			require.Equal(t, topic, d.Topic)
			ack(t, d)
			require.NoError(t, feed.Close(t.Context()))

			// The plain service gets what leat publishes.
			msgs, err := subscriber.Subscribe(t.Context(), topic)
			require.NoError(t, err)
			mine := newMessage(topic, "leat-1")
			mine.Metadata["custom"] = "kept"
			require.NoError(t, transport.Publish(t.Context(), topic, mine))
			got := receive(t, msgs)
			require.Equal(t, "leat-1", got.UUID)
			require.Equal(t, mine.Payload, got.Payload)
			require.Equal(t, "kept", got.Metadata["custom"])
			if name == "quorum, own headers" {
				require.Equal(t, "billing", got.Metadata["team"])
			}
			got.Ack()
			require.NoError(t, subscriber.Close())
			closeAll(t, transport)
		})
	}
}

// What a service's marshaler can't read is handed out with the reason, and poisoned.
func TestFromWatermill_unreadableMessagesAreMarked(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	c := stockConfigs(broker, "")["a marshaler"]
	topic := unique("order.paid.v1")
	t.Cleanup(func() {
		deleteExchange(t, broker, topic)
		deleteQueue(t, broker, topic+"_ledger")
	})
	transport := fromWatermill(t, c)
	feed := subscribe(t, transport, driver.Subscription{Group: unique("shop.ledger"), Topics: []string{topic}, Concurrency: 1})
	withBroker(t, broker, func(ch *rabbit.Channel) {
		require.NoError(t, ch.PublishWithContext(t.Context(), topic, "", true, false, rabbit.Publishing{Body: []byte("no JSON")}))
	})
	d := next(t, feed)
	require.ErrorContains(t, d.Unreadable, "Watermill's marshaler")
	require.Equal(t, "no JSON", string(d.Message.Payload))
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, d.Unreadable)))
	publish(t, transport, topic, "good")
	require.Equal(t, "good", take(t, feed))
	closeAll(t, transport)
}

func TestFromWatermill_refusesWhatWouldLoseMessages(t *testing.T) {
	for want, change := range map[string]func(*stock.Config){
		"Queue.Durable":           func(c *stock.Config) { c.Queue.Durable = false },
		"Queue.AutoDelete":        func(c *stock.Config) { c.Queue.AutoDelete = true },
		"Queue.Exclusive":         func(c *stock.Config) { c.Queue.Exclusive = true },
		"Consume.NoRequeueOnNack": func(c *stock.Config) { c.Consume.NoRequeueOnNack = true },
		"Exchange is not durable": func(c *stock.Config) { c.Exchange.Durable = false },
		"Exchange.GenerateName":   func(c *stock.Config) { c.Exchange.GenerateName = nil },
		"GenerateRoutingKey":      func(c *stock.Config) { c.Publish.GenerateRoutingKey = nil },
		"Marshaler is nil":        func(c *stock.Config) { c.Marshaler = nil },
		"Connection.AmqpURI":      func(c *stock.Config) { c.Connection.AmqpURI = "amqp://shop:s3cr%zzt@host" },
		"SASL": func(c *stock.Config) {
			c.Connection.AmqpConfig = &rabbit.Config{SASL: []rabbit.Authentication{&rabbit.AMQPlainAuth{}}}
		},
	} {
		t.Run(want, func(t *testing.T) {
			c := stock.NewDurablePubSubConfig("amqp://shop:s3cret@host/v", nil)
			change(&c)
			_, err := amqp.FromWatermill(c, nil)
			require.ErrorContains(t, err, want)
			require.NotContains(t, err.Error(), "s3cr")
		})
	}
}

func TestFromWatermill_takesTheConnection(t *testing.T) {
	c := stock.NewDurablePubSubConfig("amqps://shop:s3cret@rabbit.internal:5555/orders?heartbeat=7&auth_mechanism=external&certfile=c.pem&keyfile=k.pem", nil)
	c.Consume.Qos.PrefetchCount = 50
	c.Connection.AmqpConfig = &rabbit.Config{Properties: rabbit.Table{"connection_name": "shop-7"}}
	cfg, err := amqp.FromWatermill(c, nil)
	require.NoError(t, err)
	require.Equal(t, "rabbit.internal:5555", cfg.Host)
	require.Equal(t, "orders", cfg.Vhost)
	require.Equal(t, "shop", cfg.Username)
	require.Equal(t, "s3cret", cfg.Password)
	require.Equal(t, 7*time.Second, cfg.Heartbeat)
	require.Equal(t, amqp.External, cfg.Auth)
	require.Equal(t, "c.pem", cfg.Cert)
	require.True(t, cfg.UseTLS)
	require.Equal(t, 50, cfg.PrefetchCount)
	require.Equal(t, "shop-7", cfg.ConnectionName)
	c.Consume.Qos.PrefetchCount = 1 // watermill-amqp's own default
	cfg, err = amqp.FromWatermill(c, nil)
	require.NoError(t, err)
	require.Zero(t, cfg.PrefetchCount, "by the group's concurrency")
}

// Queues that are named by topic alone are one group's.
func TestFromWatermill_groupsDoNotShareAQueue(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	topic := unique("order.paid.v1")
	t.Cleanup(func() {
		deleteExchange(t, broker, topic)
		deleteQueue(t, broker, topic+"_ledger")
	})
	transport := fromWatermill(t, stockConfigs(broker, "")["durable Pub/Sub"])
	first := driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1}
	subscribe(t, transport, first)
	second := first
	second.Group, second.Known = unique("mail"), second.Topics
	_, err := transport.Subscribe(t.Context(), second)
	require.ErrorContains(t, err, "give FromWatermill a function that names the queues of each group")
	closeAll(t, transport)
}
