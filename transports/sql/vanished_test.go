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

// TestVanished_theGroupGoesOn checks that other consumers get the group's lock after a while if a host vanishes during a
// claim and its connection stays open. By MySQL's default that takes eight hours.
func TestVanished_theGroupGoesOn(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		s := transport
		if s.name != MySQL {
			t.Skip("PostgreSQL bounds it for each claim, SQLite has no network")
		}
		ctx := t.Context()
		receiver, err := transport.Subscribe(ctx, driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
		require.NoError(t, err)
		require.NoError(t, receiver.Close(ctx))
		g, _, err := s.groups.find(ctx, "shop.ledger")
		require.NoError(t, err)
		var database string
		require.NoError(t, s.pool.(*stdPool).db.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&database))
		u := mustParse(t, testenv.MySQL(t))
		u.Path = "/" + database
		gone, err := source{url: u, connections: 2, silence: time.Second, cfg: s.cfg}.connectMySQL()
		require.NoError(t, err)
		defer gone.close()
		locked := false
		vanish := func(tx executor) error {
			if _, err := s.groups.lock(ctx, tx, g); err != nil {
				return err
			}
			locked = true
			waiting, cancel := context.WithTimeout(ctx, 40*time.Second) // shorter than InnoDB's lock wait timeout
			defer cancel()
			other := s.pool.inTx(waiting, func(tx executor) error {
				_, err := s.groups.lock(waiting, tx, g)
				return err
			})
			require.NoError(t, other, "the others wait for it")
			return nil
		}
		for n := 0; n < 20 && !locked; n++ { // on a busy machine, the server may close the connection before
			err = gone.inTx(ctx, vanish)
		}
		require.True(t, locked, "no lock: %v", err)
		require.True(t, s.retryable(err), "the transaction is still there: %v", err)

		_, bounded, err := number(ctx, s.pool, `SELECT 1 FROM DUAL WHERE @@wait_timeout <= `+strconv.Itoa(int(mysqlIdleTimeout.Seconds())))
		require.NoError(t, err)
		require.True(t, bounded, "the transport's own connections have no limit")
	})
}
