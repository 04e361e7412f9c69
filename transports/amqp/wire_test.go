package amqp_test

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func TestForeignHeaders_ofEveryTypeAreKept(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	withBroker(t, broker, func(ch *rabbit.Channel) {
		require.NoError(t, ch.PublishWithContext(t.Context(), "events", topic, true, false, rabbit.Publishing{
			MessageId: "foreign-1", CorrelationId: "c-1", ContentType: "text/plain", ReplyTo: "answers", Timestamp: at,
			Body: []byte("hello"),
			Headers: rabbit.Table{
				"bool": true, "int8": int8(-8), "byte": byte(8), "int16": int16(-16), "uint16": uint16(16),
				"int32": int32(-32), "uint32": uint32(32), "int64": int64(-64), "float32": float32(0.5), "float64": 1e-9,
				"decimal": rabbit.Decimal{Scale: 2, Value: 12345}, "string": "text", "bytes": []byte{0, 255}, "time": at, "void": nil,
				"table":                   rabbit.Table{"b": int32(1), "a": []any{true, "x", []byte("y"), at}},
				"cloudEvents:type":        "order.paid.v1",
				"cloudEvents_source":      "/foreign",
				"cloudEvents_traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			},
		}))
	})
	want := message.Metadata{
		"bool": "true", "int8": "-8", "byte": "8", "int16": "-16", "uint16": "16",
		"int32": "-32", "uint32": "32", "int64": "-64", "float32": "0.5", "float64": "1e-09",
		"decimal": "123.45", "string": "text", "bytes": "AP8=", "time": "2026-01-02T03:04:05Z", "void": "",
		"table":                  `{"a":[true,"x","eQ==","2026-01-02T03:04:05Z"],"b":1}`,
		driver.HeaderType:        "order.paid.v1",
		driver.HeaderSource:      "/foreign",
		driver.HeaderTraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		driver.HeaderContentType: "text/plain", driver.HeaderCorrelationID: "c-1", "amqp_reply_to": "answers",
	}
	d := next(t, feed)
	require.Equal(t, "foreign-1", d.Message.UUID)
	require.Equal(t, want, d.Message.Metadata)
	require.True(t, at.Equal(d.FirstSeen))

	// The same after a delay, after the poison queue and a replay.
	require.NoError(t, d.Settler.Redeliver(200*time.Millisecond))
	d = next(t, feed)
	require.Equal(t, want, d.Message.Metadata)
	require.Equal(t, 2, d.Attempt)
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, context.Canceled)))
	poison := transport.PoisonQueue(group)
	list, err := poison.List(t.Context(), "", 1)
	require.NoError(t, err)
	_, err = poison.Replay(t.Context(), list[0].ID)
	require.NoError(t, err)
	d = next(t, feed)
	require.Equal(t, want, d.Message.Metadata)
	require.Equal(t, 1, d.Attempt)
	ack(t, d)
	closeAll(t, transport)
}

func TestProperties_areSetForOthers(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, withOptions(broker, "app_id=shop"))
	topic := unique("order.paid.v1")
	withBroker(t, broker, func(ch *rabbit.Channel) {
		q, err := ch.QueueDeclare("", false, true, true, false, nil)
		require.NoError(t, err)
		require.NoError(t, ch.QueueBind(q.Name, topic, "events", false, nil))
		msg := newMessage(topic, "m-1")
		msg.Metadata[driver.HeaderContentType] = "application/json"
		msg.Metadata[driver.HeaderCorrelationID] = "c-1"
		msg.Metadata[driver.HeaderTraceParent] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		require.NoError(t, transport.Publish(t.Context(), topic, msg))
		d, ok, err := ch.Get(q.Name, true)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, "m-1", d.MessageId)
		require.Equal(t, "application/json", d.ContentType)
		require.Equal(t, topic, d.Type)
		require.Equal(t, "c-1", d.CorrelationId)
		require.Equal(t, "shop", d.AppId)
		require.Equal(t, rabbit.Persistent, d.DeliveryMode)
		require.WithinDuration(t, time.Now(), d.Timestamp, time.Minute)
		require.Equal(t, "m-1", d.Headers["cloudEvents_id"])
		require.Equal(t, "1.0", d.Headers["cloudEvents_specversion"])
		require.Equal(t, "test", d.Headers["cloudEvents_source"])
		require.Equal(t, msg.Metadata[driver.HeaderTraceParent], d.Headers["traceparent"])
	})
	closeAll(t, transport)
}

// Names that mean something else on the wire come back as they were, and act upon nothing.
func TestHeaderNames_thatCollideWithTheWire(t *testing.T) {
	transport := open(t, sharedBroker(t))
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	msg := newMessage(topic, "m")
	for _, name := range []string{
		"cloudEvents_type", "cloudEvents:id", "x-death", "x-delivery-count", "x-first-death-queue", "CC", "BCC", "",
		"leat-attempt", "leat-delay-05", "leat-extra", "_watermill_message_uuid", "ce_correlationid", "ce_specversion",
		"ce_", "x-match", string(make([]byte, 300)),
	} {
		msg.Metadata[name] = "theirs \xff"
	}
	want := maps.Clone(msg.Metadata)
	require.NoError(t, transport.Publish(t.Context(), topic, msg))
	for range 2 {
		d := next(t, feed)
		require.Equal(t, want, d.Message.Metadata)
		require.NoError(t, d.Settler.Redeliver(200*time.Millisecond))
	}
	d := next(t, feed)
	require.Equal(t, want, d.Message.Metadata)
	require.Equal(t, 3, d.Attempt)
	ack(t, d)
	closeAll(t, transport)
}
