package queue

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// TestVanished_theGroupGoesOn checks that other consumers get the group's lock after a while if a host vanishes during a
// claim and its connection stays open. By MySQL's default that takes eight hours.
func TestVanished_theGroupGoesOn(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		s := transport
		if s.core.Name != sqlconfig.MySQL {
			t.Skip("PostgreSQL bounds it for each claim, SQLite has no network")
		}
		ctx := t.Context()
		receiver, err := transport.Subscribe(ctx, driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
		require.NoError(t, err)
		require.NoError(t, receiver.Close(ctx))
		g, _, err := s.core.groups.find(ctx, "shop.ledger")
		require.NoError(t, err)
		var name string
		require.NoError(t, s.core.Pool.(*database.StdPool).DB.QueryRowContext(ctx, "SELECT DATABASE()").Scan(&name))
		u := mustParse(t, testenv.MySQL(t))
		u.Path = "/" + name
		gone, err := database.Connect(config.Source{URL: u, Connections: 2, Silence: time.Second, Config: s.core.Config})
		require.NoError(t, err)
		defer gone.Close()
		locked := false
		vanish := func(tx database.Executor) error {
			if _, err := s.core.groups.lock(ctx, tx, g); err != nil {
				return err
			}
			locked = true
			waiting, cancel := context.WithTimeout(ctx, 40*time.Second) // shorter than InnoDB's lock wait timeout
			defer cancel()
			other := s.core.Pool.InTx(waiting, func(tx database.Executor) error {
				_, err := s.core.groups.lock(waiting, tx, g)
				return err
			})
			require.NoError(t, other, "the others wait for it")
			return nil
		}
		for n := 0; n < 20 && !locked; n++ { // on a busy machine, the server may close the connection before
			err = gone.InTx(ctx, vanish)
		}
		require.True(t, locked, "no lock: %v", err)
		require.True(t, s.core.Temporary(err), "the transaction is still there: %v", err)

		_, bounded, err := database.Number(ctx, s.core.Pool, `SELECT 1 FROM DUAL WHERE @@wait_timeout <= `+strconv.Itoa(int(config.MySQLIdleTimeout.Seconds())))
		require.NoError(t, err)
		require.True(t, bounded, "the transport's own connections have no limit")
	})
}
