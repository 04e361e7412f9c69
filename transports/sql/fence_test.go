package sql_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestFence_growsWhenMessagesAreTakenFromAConsumerThatDoesNotKnow checks that the fencing number grows when a lease expires while
// its consumer handles a message, and an existing consumer of the group claims that message.
func TestFence_growsWhenMessagesAreTakenFromAConsumerThatDoesNotKnow(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		for _, order := range []driver.Order{driver.OrderedByKey, driver.OrderedStrictly} {
			ctx, db := sqltest.Context(t), s.DB(t)
			sub := sqltest.Subscription(fmt.Sprintf("shop.ledger%d", order), 1, "order.paid.v1")
			sub.Order = order
			late, other := s.Start(t, "lease", "1h"), s.Start(t, "lease", "1h")
			lateFeed, err := late.Subscribe(ctx, sub)
			require.NoError(t, err)
			lease := sqltest.Count(t, db, fmt.Sprintf("SELECT c.id FROM %s c JOIN %s g ON g.id = c.group_id WHERE g.name = '%s'", s.Table("consumers"), s.Table("groups"), sub.Group))
			publishKeyed(t, late, "a/1")
			d := sqltest.Next(t, lateFeed, sqltest.Patience)
			require.Positive(t, d.Fence)
			otherFeed, err := other.Subscribe(ctx, sub)
			require.NoError(t, err)

			sqltest.Run(t, db, fmt.Sprintf("UPDATE %s SET expires_at = 0 WHERE id = %d", s.Table("consumers"), lease))
			again := sqltest.Next(t, otherFeed, sqltest.Patience)
			require.Equal(t, "a/1", driver.MessageID(again.Message))
			require.Equal(t, 2, again.Attempt)
			joined := d.Fence + 1
			require.Greater(t, again.Fence, joined, "the other consumer has joined and claimed the message")
			require.NoError(t, again.Settler.Ack())
			publishKeyed(t, other, "a/2")
			last := sqltest.Next(t, otherFeed, sqltest.Patience)
			require.Equal(t, again.Fence, last.Fence, "the consumer is the same")
			require.NoError(t, last.Settler.Ack())
			require.NoError(t, lateFeed.Close(ctx))
			require.NoError(t, otherFeed.Close(ctx))
		}
	})
}

// TestFence_tablesThatAreOlderHaveNone checks that older tables work without fencing numbers.
func TestFence_tablesThatAreOlderHaveNone(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		s.makeVersion3(t, s.DB(t))
		transport := s.Start(t)
		sub := sqltest.Subscription("shop.ledger", 1, "order.paid.v1")
		sub.Order = driver.OrderedByKey
		feed, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		publishKeyed(t, transport, "a/1")
		d := sqltest.Next(t, feed, sqltest.Patience)
		require.Zero(t, d.Fence)
		require.NoError(t, d.Settler.Ack())
	})
}
