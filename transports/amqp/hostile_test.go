package amqp_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

func deepTable(depth int) rabbit.Table {
	table := rabbit.Table{"deepest": true}
	for range depth {
		table = rabbit.Table{"t": table}
	}
	return table
}

func wideTable(fields int) rabbit.Table {
	table := make(rabbit.Table, fields)
	for i := range fields {
		table[fmt.Sprintf("f%05d", i)] = nil
	}
	return table
}

// Headers that can't be read cost their message its handling and nobody anything else.
func TestHostile_headersThatCanNotBeRead(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	bothQueues(t, broker, func(t *testing.T, raw string) {
		transport := open(t, raw)
		topic, group := unique("order.paid.v1"), unique("ledger")
		feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4})
		neighbour := subscribe(t, transport, driver.Subscription{Group: unique("mail"), Topics: []string{topic + ".other"}, Concurrency: 1})
		filled := rabbit.Table{"x": ""}
		withBroker(t, raw, func(ch *rabbit.Channel) {
			for id, table := range map[string]rabbit.Table{"deep": deepTable(33), "wide": wideTable(8193), "filled": filled} {
				if id == "filled" { // so that the header frame has 131,072 bytes, and one more header does not fit
					filled["x"] = strings.Repeat("x", 131_072-8-14-4-2-5-len(id)-1-1)
				}
				require.NoError(t, ch.PublishWithContext(t.Context(), "events", topic, true, false, rabbit.Publishing{MessageId: id, Headers: table, Body: []byte("body of " + id)}))
			}
		})
		publish(t, transport, topic, "good")
		publish(t, transport, topic+".other", "good")
		require.Equal(t, "good", take(t, neighbour))
		bad := make(map[string]error)
		for settled := 0; settled < 4; {
			d := next(t, feed)
			if d.Unreadable == nil && d.Message.UUID == "filled" && d.Attempt == 1 { // it fits, as it was published
				require.NoError(t, d.Settler.Redeliver(0))
				continue
			}
			settled++
			if d.Unreadable == nil {
				ack(t, d)
				continue
			}
			require.Empty(t, d.Message.Metadata["deepest"])
			require.Equal(t, "body of "+d.Message.UUID, string(d.Message.Payload))
			bad[d.Message.UUID] = d.Unreadable
			require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, d.Unreadable)))
		}
		require.ErrorContains(t, bad["deep"], "nested more than 32 deep")
		require.ErrorContains(t, bad["wide"], "more than 8192 fields")
		list, err := transport.PoisonQueue(group).List(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, list, len(bad))
		for _, p := range list {
			require.Contains(t, p.Fault.Text, bad[p.Message.UUID].Error())
			_, err := transport.PoisonQueue(group).Replay(t.Context(), p.ID)
			require.NoError(t, err)
			d := next(t, feed)
			require.NoError(t, d.Unreadable, "an operator who replays it wants it without its headers")
			ack(t, d)
		}
		require.Zero(t, transport.Health().Reconnects)
		closeAll(t, transport)
	})
}

// A message whose headers fill a frame does not fit any more when the broker adds its count to them.
func TestHostile_headersThatTheBrokerMakesTooLarge(t *testing.T) {
	raw := withOptions(testenv.RabbitMQ(t), "queue=quorum")
	transport := open(t, raw)
	topic, group := unique("order.paid.v1"), unique("ledger")
	sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4}
	feed := subscribe(t, transport, sub)
	withBroker(t, raw, func(ch *rabbit.Channel) {
		body := bytes.Repeat([]byte("b"), 10)
		for _, size := range []int{131_010, 131_014} {
			require.NoError(t, ch.PublishWithContext(t.Context(), "events", topic, true, false, rabbit.Publishing{
				MessageId: fmt.Sprint(size), Headers: rabbit.Table{"x": strings.Repeat("x", size)}, Body: body,
			}))
		}
	})
	out := []*driver.Delivery{next(t, feed), next(t, feed)}
	publish(t, transport, topic, "good")
	transport.LoseConnectionsForTest() // and the broker counts
	for _, d := range out {
		require.NoError(t, d.Unreadable)
	}
	done := make(map[string]bool)
	for len(done) < 3 {
		d := next(t, feed)
		if d.Unreadable == nil {
			require.Equal(t, "good", d.Message.UUID)
		} else {
			require.ErrorContains(t, d.Unreadable, "do not fit into a frame")
		}
		if d.Settler.Ack() == nil {
			done[d.Message.UUID] = true
		}
	}
	for _, d := range out {
		require.Error(t, d.Settler.Ack(), "it is late")
	}
	require.LessOrEqual(t, transport.Health().Reconnects, 2, "each connection once")
	closeAll(t, transport)
}
