package queue

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// TestRedeliver_manyShareAStatement checks that messages that are redelivered later share statements, with and without the
// time of the first failure, in every order.
func TestRedeliver_manyShareAStatement(t *testing.T) {
	ctx := t.Context()
	db, cfg, trips := pgxSchema(t)
	transport, err := Open(ctx, db, cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, transport.Close(context.Background())) }()
	const n = 300
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		sub := driver.Subscription{Group: fmt.Sprintf("shop.g%d", order), Topics: []string{"order.paid.v1"}, Concurrency: n, Order: order}
		subscribed, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		receiver := subscribed.(*receiver)
		var msgs []*message.Message
		for i := range n {
			msgs = append(msgs, keyedMessage(fmt.Sprintf("key-%d", i)))
		}
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", msgs...))
		var out []*driver.Delivery
		for range n {
			d, err := receiver.Next(ctx)
			require.NoError(t, err)
			out = append(out, d)
		}
		before := trips.n.Load()
		for _, d := range out {
			d.FailedSince = time.Now()
			require.NoError(t, d.Settler.Redeliver(time.Hour))
		}
		require.NoError(t, receiver.settlements.flush(ctx))
		require.Less(t, trips.n.Load()-before, int64(n/3))
		delayed, _, err := database.Number(ctx, db, transport.core.SQL(`SELECT count(*) FROM {messages} WHERE group_id = ? AND owner = 0 AND attempt = 1
			AND CASE WHEN state = 1 THEN pos ELSE due_at END BETWEEN {now} + 3000000000 AND {now} + 3600000000`), receiver.group.id)
		require.NoError(t, err)
		require.EqualValues(t, n, delayed)
		require.NoError(t, receiver.Close(ctx))
	}
}

// TestPoisonQueue_aPageReadsNoneBefore checks that a page is read by the index from its position.
func TestPoisonQueue_aPageReadsNoneBefore(t *testing.T) {
	s, _ := pgxStore(t)
	_, text := explain(t, s.Pool.(*database.PgxPool), "force_custom_plan", s.SQL(listPoisoned), 1, 5, 5, 7, 10)
	require.True(t, strings.Contains(text, `"Index Cond"`) && strings.Contains(text, "(pos >= "), text)
}
