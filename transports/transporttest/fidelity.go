package transporttest

import (
	"bytes"
	"maps"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testFidelity tests promise 5.
func testFidelity(t *testing.T, h Harness) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	for _, c := range []struct {
		name    string
		payload []byte
	}{
		{"JSON with odd spaces", []byte(" { \"b\" : 1 , \"a\": 1.50, \"a\": 2 }\n")},
		{"binary", binary},
		{"invalid UTF-8", []byte("\xff\xfe{\x00}")},
		{"empty", []byte{}},
		{"1 MiB", big},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, transport, topic, receiver := newLedger(t, h)
			msg := newMessage(topic, "m")
			msg.Payload = c.payload
			require.NoError(t, transport.Publish(w.ctx, topic, msg))
			d := w.next(receiver)
			require.True(t, bytes.Equal(c.payload, d.Message.Payload), "payload changed")
			w.ack(d)
		})
	}

	t.Run("headers", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		headers := message.Metadata{
			driver.HeaderID:            "0190b7a0-7b0e-7cc4-9c6a-000000000001",
			driver.HeaderType:          topic,
			driver.HeaderSource:        "/shop/checkout?zone=1",
			driver.HeaderTime:          "2026-01-02T03:04:05.000000006Z",
			driver.HeaderSubject:       "Bestellung/42 – Größe",
			driver.HeaderPartitionKey:  "customer-7",
			driver.HeaderDedupKey:      "42",
			driver.HeaderContentType:   "application/vnd.shop+json",
			driver.HeaderDataSchema:    "https://example.com/schema",
			"ce_tenant":                "acme",
			driver.HeaderCorrelationID: "c-1",
			driver.HeaderCausationID:   "c-0",
			driver.HeaderTraceParent:   "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			driver.HeaderTraceState:    "a=1,b=2",
			driver.HeaderInstance:      "i-1",
			"plain":                    "value",
			"UPPER-Case_key.x":         "kept",
			"名前":                       "値",
			"empty":                    "",
			"spaces and = signs":       " around ",
			"number":                   "42",
			"true":                     "true",
			"long":                     string(bytes.Repeat([]byte("x"), 4096)),
		}
		msg := &message.Message{UUID: headers[driver.HeaderID], Payload: []byte("{}"), Metadata: headers}
		want := maps.Clone(headers)
		require.NoError(t, transport.Publish(w.ctx, topic, msg))
		d := w.next(receiver)
		require.Equal(t, headers[driver.HeaderID], d.Message.UUID)
		require.Equal(t, want, d.Message.Metadata)
		require.NoError(t, d.Settler.Redeliver(0))
		d = w.next(receiver)
		require.Equal(t, want, d.Message.Metadata, "after a redelivery")
		w.ack(d)
	})

	t.Run("an id of any length", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		msg := newMessage(topic, strings.Repeat("é", 300))
		require.NoError(t, transport.Publish(w.ctx, topic, msg))
		d := w.next(receiver)
		require.Equal(t, msg.UUID, d.Message.UUID)
		require.Equal(t, msg.UUID, driver.MessageID(d.Message))
		w.ack(d)
	})

	t.Run("a message without headers", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		require.NoError(t, transport.Publish(w.ctx, topic, &message.Message{UUID: "m", Payload: []byte("{}")}))
		d := w.next(receiver)
		require.Equal(t, "m", driver.MessageID(d.Message))
		require.NotNil(t, d.Message.Metadata)
		require.Equal(t, topic, d.Topic)
		w.ack(d)
	})
}
