package amqp_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

// A walk shows each message once, though its caller uses the queue meanwhile, and many walks rewrite nothing if
// no policy asks for it.
func TestWalk_showsEachOnceAndRewritesNothing(t *testing.T) {
	raw := withOptions(testenv.RabbitMQ(t), "queue=quorum")
	transport, other := open(t, raw), open(t, raw)
	group, topic := unique("ledger"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 5000
	msgs := make([]driver.PoisonedMessage, n)
	for i := range msgs {
		msgs[i].Message = message.NewMessage(fmt.Sprintf("m-%05d", i), []byte("{}"))
		driver.Fault{Topic: topic, Group: group}.Set(msgs[i].Message.Metadata)
	}
	require.NoError(t, transport.PoisonQueue(group).Put(t.Context(), msgs...))
	walker := transport.PoisonQueue(group).(driver.PoisonWalker)
	walk := func(first func() error) {
		seen := make(map[string]bool, n)
		began := time.Now()
		require.NoError(t, walker.Walk(t.Context(), func(m driver.PoisonedMessage) error {
			if len(seen) == 0 && first != nil {
				if err := first(); err != nil {
					return err
				}
			}
			if seen[m.ID] {
				return fmt.Errorf("%s was shown twice", m.ID)
			}
			seen[m.ID] = true
			return nil
		}))
		require.Len(t, seen, n)
		t.Logf("walked through %d in %s", n, time.Since(began))
	}
	const walks = 5
	for range walks {
		walk(nil)
	}
	withBroker(t, raw, func(ch *rabbit.Channel) {
		d, there, err := ch.Get(group+".poison", false)
		require.NoError(t, err)
		require.True(t, there)
		require.EqualValues(t, walks, d.Headers["x-delivery-count"], "it is the same message")
	})
	eventually(t, "it is back", func() bool { return depth(t, raw, group+".poison") == n })
	walk(func() error {
		got, err := other.PoisonQueue(group).Len(t.Context())
		require.Equal(t, n, got)
		return err
	})
	closeAll(t, transport, other)
}
