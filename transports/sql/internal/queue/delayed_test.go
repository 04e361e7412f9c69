package queue

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// TestPromote_handsOutTheFirstBeforeAllAreReady checks that many messages with the same due time are made ready in batches.
func TestPromote_handsOutTheFirstBeforeAllAreReady(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1}
		first, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		require.NoError(t, first.Close(ctx))
		const n = 5000
		waitingKeys(t, transport.core.DB, sub.Group, n, -time.Second)
		_, err = transport.core.Pool.Exec(ctx, transport.core.SQL(`UPDATE {messages} SET state = 1, lane = 0, due_at = 0`))
		require.NoError(t, err)
		receiver, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		d, err := receiver.Next(ctx)
		require.NoError(t, err)
		waiting, _, err := database.Number(ctx, transport.core.Pool, transport.core.SQL(`SELECT count(*) FROM {messages} WHERE state = 1`))
		require.NoError(t, err)
		require.Greater(t, waiting, int64(n/2), "all messages were made ready first")
		require.NoError(t, d.Settler.Ack())
		for range 300 {
			d, err := receiver.Next(ctx)
			require.NoError(t, err)
			require.NoError(t, d.Settler.Ack())
		}
	})
}
