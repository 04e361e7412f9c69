package amqp_test

import (
	"context"
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

// A connection that is lost in the middle ends a walk and nothing else, however the walk is to end: what it had read is
// back, and the next walk shows it.
func TestWalk_endsWithItsConnection(t *testing.T) {
	transport := open(t, withOptions(testenv.RabbitMQ(t), "queue=quorum"))
	group, topic := unique("ledger"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 300 // more than the first stride, so that the browser is in the middle
	msgs := make([]driver.PoisonedMessage, n)
	for i := range msgs {
		msgs[i].Message = message.NewMessage(fmt.Sprintf("m-%05d", i), []byte("{}"))
		driver.Fault{Topic: topic, Group: group}.Set(msgs[i].Message.Metadata)
	}
	poison := transport.PoisonQueue(group)
	require.NoError(t, poison.Put(t.Context(), msgs...))
	ids := make([]string, 0, n)
	walk := func(ctx context.Context, visit func() error) error {
		return poison.(driver.PoisonWalker).Walk(ctx, func(m driver.PoisonedMessage) error {
			ids = append(ids, m.ID)
			return visit()
		})
	}
	for name, end := range map[string]func(stop func()) error{
		"by itself":          func(func()) error { return nil },
		"by its context":     func(stop func()) error { stop(); return nil },
		"by its caller":      func(func()) error { return errEnough },
		"by both of the two": func(stop func()) error { stop(); return errEnough },
	} {
		ctx, stop := context.WithCancel(t.Context())
		err := walk(ctx, func() error {
			transport.LoseConnectionsForTest()
			return end(stop)
		})
		stop()
		require.Error(t, err, name)
		ids = ids[:0]
		require.NoError(t, walk(t.Context(), func() error { return nil }), name)
		require.Len(t, ids, n, name)
	}
	closeAll(t, transport)
}
