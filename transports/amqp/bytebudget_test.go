package amqp_test

import (
	"testing"

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
