package sql_test

import (
	stdsql "database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestHeldSnapshot_nothingIsMissed checks that published, returned and late committed messages are handled in every order
// while an old snapshot keeps deleted rows in the tables, as a dump or a replication slot does.
func TestHeldSnapshot_nothingIsMissed(t *testing.T) {
	t.Parallel()
	s, ctx := onPostgres(t), sqltest.Context(t)
	transport := s.Start(t)
	snapshot := sqltest.Begin(t, s.DB(t), stdsql.LevelRepeatableRead)
	defer func() { _ = snapshot.Rollback() }()
	var n int
	require.NoError(t, snapshot.QueryRowContext(ctx, "SELECT count(*) FROM "+s.Table("messages")).Scan(&n))
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey, driver.OrderedStrictly} {
		sub := sqltest.Subscription(fmt.Sprintf("shop.g%d", order), 4, "order.paid.v1")
		sub.Order = order
		l, stop := load(t, transport, transport, sub)
		l.waitAccepted(t, 500)
		stop()
		_, missing, twice := l.balance()
		require.Zero(t, missing)
		require.Zero(t, twice)

		feed, err := transport.Subscribe(ctx, sqltest.Subscription(sub.Group+".slow", 1, "order.slow.v1"))
		require.NoError(t, err)
		tx := sqltest.Begin(t, s.DB(t), stdsql.LevelDefault)
		publishInTx(t, tx, s.Config, "order.slow.v1", sqltest.NewMessage("order.slow.v1", "late"))
		require.NoError(t, transport.Publish(ctx, "order.slow.v1", sqltest.NewMessage("order.slow.v1", "early")))
		d := sqltest.Next(t, feed, sqltest.Patience)
		require.Equal(t, "early", driver.MessageID(d.Message))
		require.NoError(t, d.Settler.Redeliver(10*time.Millisecond))
		require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.GiveBack(0))
		require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
		require.NoError(t, tx.Commit())
		d = sqltest.Next(t, feed, sqltest.Patience)
		require.Equal(t, "late", driver.MessageID(d.Message))
		require.NoError(t, d.Settler.Ack())
		require.NoError(t, feed.Close(ctx))
	}
}
