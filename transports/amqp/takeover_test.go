//go:build unix

package amqp_test

import (
	"context"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/testenv"
)

// A new leader hands out nothing before the queue of held messages has noticed the end of the last one: what
// that one had would come behind what is new.
func TestALeaderWaitsForTheEndOfTheLast(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := bus.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: bus.OrderedByKey}
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "a/1", "a/2")
		require.NoError(t, next(t, feed).Settler.Redeliver(2*time.Second))
		eventually(t, "both are held", func() bool { return first.HeldForTest() == 2 })
		closeAll(t, first)

		withBroker(t, raw, func(ch *rabbit.Channel) { // as the last leader, whose end was not noticed yet
			require.NoError(t, ch.Qos(3, 0, false))
			held, err := ch.Consume(group+".held", "", false, false, false, false, nil)
			require.NoError(t, err)
			for range 3 { // with the note that it ended in peace
				<-held
			}
			second := open(t, raw)
			feed = subscribe(t, second, sub)
			publishKeyed(t, second, topic, "a/3")
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, err = feed.Next(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded, "it came too early")
			require.NoError(t, ch.Close())
			for _, id := range []string{"a/1", "a/2", "a/3"} {
				require.Equal(t, id, take(t, feed))
			}
			closeAll(t, second)
		})
	})
}
