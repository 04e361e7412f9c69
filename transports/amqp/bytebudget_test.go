package amqp_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// What a group has fetched and not settled is bounded in bytes, whatever came before; small messages are fetched in numbers
// again afterwards.
func TestPrefetch_isBoundedByBytes(t *testing.T) {
	const mib = 1 << 20
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		transport := open(t, raw, func(c *amqp.Config) { c.PrefetchBytes = 4 * mib })
		group, topic := unique("ledger"), unique("order.paid.v1")
		feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 10})
		send := func(n, size int) {
			var msgs []*message.Message
			for range n {
				msg := newMessage(topic, unique("m"))
				msg.Payload = make([]byte, size)
				msgs = append(msgs, msg)
			}
			require.NoError(t, transport.Publish(t.Context(), topic, msgs...))
		}
		handle := func(n int) {
			for range n {
				d := next(t, feed)
				switch len(d.Message.Payload) % 3 { // all ways to settle release
				case 0:
					ack(t, d)
				default:
					require.NoError(t, d.Settler.Redeliver(0))
					ack(t, next(t, feed))
				}
			}
		}
		send(300, 100)
		handle(100)
		send(60, mib)
		handle(260)
		_, peak, prefetch := transport.BytesForTest(group)
		require.LessOrEqual(t, peak, 5*mib)
		require.GreaterOrEqual(t, peak, mib)
		require.LessOrEqual(t, prefetch, 8)
		send(2, 6*mib) // more than all that is to be fetched
		handle(2)
		send(400, 99)
		handle(400)
		eventually(t, "all is released", func() bool {
			held, _, prefetch := transport.BytesForTest(group)
			return held == 0 && prefetch == 50
		})
		d := make([]*driver.Delivery, 5)
		send(len(d), mib)
		for i := range 3 {
			d[i] = next(t, feed)
		}
		transport.LoseConnectionsForTest() // which releases, too
		for i := range 3 {
			_ = d[i].Settler.Ack() // late, but for one that was on its way
		}
		closeAll(t, transport)
		held, _, _ := transport.BytesForTest(group)
		require.Zero(t, held)
	})
}

// An ordered group has as many messages as ever, and those that are too much for its memory in a file. They are
// handled in order, also those that are redelivered, parked and replayed, and after the connection was lost.
func TestPrefetch_ofOrderedGroupsIsBoundedByBytes(t *testing.T) {
	const mib, keys, n = 1 << 20, 4, 12
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		transport := open(t, raw, func(c *amqp.Config) { c.PrefetchBytes = 4 * mib })
		group, topic := unique("ledger"), unique("order.paid.v1")
		feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 8, Order: driver.OrderedByKey, Park: true})
		for i := range n {
			var msgs []*message.Message
			for key := range keys {
				msg := newMessage(topic, fmt.Sprintf("%s.%d.%d", group, key, i))
				msg.Metadata[driver.HeaderPartitionKey] = fmt.Sprint("k", key)
				msg.Payload = bytes.Repeat([]byte{byte(i)}, mib)
				msgs = append(msgs, msg)
			}
			require.NoError(t, transport.Publish(t.Context(), topic, msgs...))
		}
		first := next(t, feed) // the others wait here, if anything lets them
		eventually(t, "all have come", func() bool { return transport.HereForTest(group) >= keys*n })
		_, peak, _ := transport.BytesForTest(group)
		require.LessOrEqual(t, peak, 4*mib)
		require.GreaterOrEqual(t, peak, mib)

		at := make(map[string]int)
		out := []*driver.Delivery{first}
		handled, poisoned, lost := 0, "", false
		for handled < keys*n-1 {
			if poisoned != "" && handled == (keys-1)*n+at[poisoned] {
				break // the rest of its key is parked
			}
			if len(out) == 0 {
				out = append(out, next(t, feed))
			}
			d := out[0]
			out = nil
			key := d.Message.Metadata[driver.HeaderPartitionKey]
			require.Len(t, d.Message.Payload, mib)
			i := at[key]
			if d.Message.Payload[0] == byte(i-1) && lost {
				ack(t, d) // once more
				continue
			}
			require.Equal(t, byte(i), d.Message.Payload[0], "key %s", key)
			switch {
			case i == 3 && d.Attempt == 1:
				require.NoError(t, d.Settler.Redeliver(time.Millisecond))
			case i == 5 && poisoned == "":
				poisoned = key
				require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
			case handled == 22 && !lost:
				lost = true
				transport.LoseOrderedForTest(group)
				_ = d.Settler.Ack()
				at[key]++
				handled++
			default:
				_ = d.Settler.Ack()
				at[key]++
				handled++
			}
		}
		list, err := transport.PoisonQueue(group).List(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Len(t, list[0].Message.Payload, mib)
		_, err = transport.PoisonQueue(group).Replay(t.Context(), list[0].ID)
		require.NoError(t, err)
		for i := at[poisoned]; i < n; i++ {
			d := next(t, feed)
			require.Equal(t, poisoned, d.Message.Metadata[driver.HeaderPartitionKey])
			require.Equal(t, byte(i), d.Message.Payload[0])
			ack(t, d)
		}
		_, peak, _ = transport.BytesForTest(group)
		require.LessOrEqual(t, peak, 5*mib)
		eventually(t, "nothing is counted at the end", func() bool {
			held, _, _ := transport.BytesForTest(group)
			return held == 0
		})
		closeAll(t, transport)
	})
}
