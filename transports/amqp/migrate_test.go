//go:build unix

package amqp_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
)

// oldLayout makes the queues and exchanges for delays as they were before the broker alone moved delays.
func oldLayout(t testing.TB, ch *rabbit.Channel, queue string) {
	args := func() rabbit.Table {
		args := rabbit.Table{"x-queue-type": queue}
		if queue == "quorum" {
			args["x-delivery-limit"] = int64(1 << 30)
		}
		return args
	}
	declare := func(name string, args rabbit.Table) {
		_, err := ch.QueueDeclare(name, true, false, false, false, args)
		require.NoError(t, err)
	}
	prefix := "leat.delay." + queue + "."
	declare(prefix+"undelivered", args())
	declare(prefix+"near", args())
	require.NoError(t, ch.ExchangeDeclare(prefix+"near", "fanout", true, false, false, false, nil))
	require.NoError(t, ch.QueueBind(prefix+"near", "", prefix+"near", false, nil))
	next := prefix + "near"
	for n := range 20 {
		level := fmt.Sprintf("%s%02d", prefix, n)
		require.NoError(t, ch.ExchangeDeclare(level, "headers", true, false, false, false, rabbit.Table{"alternate-exchange": next}))
		a := args()
		a["x-dead-letter-exchange"] = next
		a["x-message-ttl"] = int64(4000) << n
		if queue == "quorum" {
			a["x-dead-letter-strategy"], a["x-overflow"] = "at-least-once", "reject-publish"
		}
		declare(level, a)
		require.NoError(t, ch.QueueBind(level, "", level, false, rabbit.Table{"x-match": "all", fmt.Sprintf("leat-delay-%02d", n): true}))
		next = level
	}
}

// What processes of the old version have delayed comes at its time when they are gone, and is not touched before.
func TestUpgrade_losesNoDelayedMessage(t *testing.T) {
	await(t, turns.shared)
	b := newBroker(t) // the old layout is in nobody's way
	b.start(t)
	t.Cleanup(func() { b.end(syscall.SIGKILL); b.brokerHost.close() })
	eachQueue(t, b.url(), func(t *testing.T, raw string) {
		queue := raw[strings.Index(raw, "queue=")+len("queue="):]
		group, topic := unique("ledger"), unique("order.paid.v1")
		prefix := "leat.delay." + queue + "."
		withBroker(t, raw, func(ch *rabbit.Channel) {
			oldLayout(t, ch, queue)
			args := rabbit.Table{"x-queue-type": queue, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": group + ".poison"}
			if queue == "quorum" {
				args["x-delivery-limit"] = int64(1 << 30)
			}
			_, err := ch.QueueDeclare(group, true, false, false, false, args)
			require.NoError(t, err)
			require.NoError(t, ch.ExchangeDeclare("events", "topic", true, false, false, false, nil))
			require.NoError(t, ch.QueueBind(group, topic, "events", false, nil))

			began := time.Now()
			due := make(map[string]time.Time)
			publish := func(id, exchange, key string, after time.Duration, headers rabbit.Table) {
				due[id] = began.Add(after)
				headers["leat-due"], headers["cloudEvents_id"] = due[id].UnixMicro(), id
				require.NoError(t, ch.PublishWithContext(t.Context(), exchange, key, true, false, rabbit.Publishing{
					MessageId: id, DeliveryMode: rabbit.Persistent, Headers: headers,
				}))
			}
			publish("soon", "", prefix+"near", time.Second, rabbit.Table{"leat-delay-to": "events", "leat-key": topic})
			publish("soon again", "", prefix+"near", 6*time.Second, rabbit.Table{
				"leat-delay-to": "", "leat-key": group, "leat-attempt": int32(3), "leat-topic": topic,
			})
			publish("later", prefix+"19", topic, 7*time.Second, rabbit.Table{"leat-delay-to": "events", "leat-delay-00": true})
			publish("later again", prefix+"19", group, 14*time.Second, rabbit.Table{
				"leat-delay-to": "", "leat-delay-00": true, "leat-delay-01": true, "leat-attempt": int32(5), "leat-topic": topic,
			})
			publish("astray", "", prefix+"near", 0, rabbit.Table{"leat-delay-to": "no.such.exchange", "leat-key": topic})
			for i := range 150 { // more than a window
				publish(itoa(i), "", prefix+"near", 2*time.Second, rabbit.Table{"leat-delay-to": "events", "leat-key": topic})
			}

			// A process of the old version holds them.
			old, err := rabbit.Dial(bare(raw))
			require.NoError(t, err)
			oldCh, err := old.Channel()
			require.NoError(t, err)
			require.NoError(t, oldCh.Qos(2000, 0, false))
			held, err := oldCh.Consume(prefix+"near", "warden-1", false, false, false, false, nil)
			require.NoError(t, err)
			for range 153 {
				<-held
			}
			transport := open(t, raw, amqp.MigrateOften)
			feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
			require.Contains(t, findingOf(t, transport.Diagnose(t.Context()), "queues for delays of an older version").Text, "moves the messages: 1")
			require.NoError(t, old.Close()) // the last one ends

			got := make(map[string]int)
			for len(got) < 154 {
				d := next(t, feed)
				id := driver.MessageID(d.Message)
				require.NotContains(t, got, id)
				require.False(t, time.Now().Before(due[id]), "%s came early", id)
				require.Equal(t, topic, d.Topic)
				got[id] = d.Attempt
				ack(t, d)
			}
			require.Equal(t, 1, got["soon"])
			require.Equal(t, 4, got["soon again"])
			require.Equal(t, 1, got["later"])
			require.Equal(t, 6, got["later again"])
			var d rabbit.Delivery
			eventually(t, "what can't be delivered is kept", func() (ok bool) {
				d, ok, err = ch.Get(prefix+"undelivered", true)
				require.NoError(t, err)
				return ok
			})
			require.Equal(t, "astray", d.MessageId)
			require.Equal(t, "no.such.exchange", d.Headers["leat-delay-to"])
			eventually(t, "the doctor says that the old layout can go", func() bool {
				text := findingOf(t, transport.Diagnose(t.Context()), "queues for delays of an older version").Text
				return strings.Contains(text, "delete the queues")
			})
			closeAll(t, transport)
		})
	})
}
