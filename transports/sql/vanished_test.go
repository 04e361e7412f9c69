package sql

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

// TestVanished_theGroupGoesOn: a host that vanishes in the middle of a claim, so that its connection stays open,
// leaves the group's lock to the others after a while. MySQL's own time for that is eight hours.
func TestVanished_theGroupGoesOn(t *testing.T) {
	eachStore(t, func(t *testing.T, transport *Transport) {
		s := transport
		if s.name != MySQL {
			t.Skip("PostgreSQL bounds it for each claim, SQLite has no network")
		}
		ctx := t.Context()
		feed, err := transport.Subscribe(ctx, driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
		require.NoError(t, err)
		require.NoError(t, feed.Close(ctx))
		g, _, err := s.groups.find(ctx, "shop.ledger")
		require.NoError(t, err)
		var database string
		require.NoError(t, s.pool.(*stdPool).db.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&database))
		u := mustParse(t, testenv.MySQL(t))
		u.Path = "/" + database
		gone, err := source{url: u, connections: 2, silence: time.Second, cfg: s.cfg}.connectMySQL()
		require.NoError(t, err)
		defer gone.close()
		err = gone.inTx(ctx, func(tx executor) error {
			require.NoError(t, s.groups.lock(ctx, tx, g))
			waiting, cancel := context.WithTimeout(ctx, 40*time.Second) // less than InnoDB waits for a lock
			defer cancel()
			other := s.pool.inTx(waiting, func(tx executor) error { return s.groups.lock(waiting, tx, g) })
			require.NoError(t, other, "the others wait for it")
			return nil
		})
		require.True(t, s.retryable(err), "the transaction is still there: %v", err)

		_, bounded, err := number(ctx, s.pool, `SELECT 1 FROM DUAL WHERE @@wait_timeout <= `+strconv.Itoa(int(mysqlSilence.Seconds())))
		require.NoError(t, err)
		require.True(t, bounded, "the transport's own connections have no limit")
	})
}
