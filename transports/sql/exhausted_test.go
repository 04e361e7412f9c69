package sql_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestExhaustedPool_leasesAreRenewed checks that leases are renewed although handlers use all connections of a pool
// that they share with the transport, and that this is logged.
func TestExhaustedPool_leasesAreRenewed(t *testing.T) {
	t.Parallel()
	const lease = 30 * time.Second // a busy machine may renew it some seconds late
	s, ctx := onPostgres(t), sqltest.Context(t)
	shared, _ := s.Pool(t)
	cfg := shared.Config()
	cfg.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	defer pool.Close()
	var log testenv.Buffer
	tables := s.Config
	tables.Lease, tables.Logger = lease, slog.New(slog.NewTextHandler(&log, nil))
	transport, err := sql.NewPgx(ctx, pool, tables)
	require.NoError(t, err)
	defer sqltest.CloseNow(t, transport)
	sub := sqltest.Subscription("shop.ledger", 1, "order.paid.v1")
	feed, err := transport.Subscribe(ctx, sub)
	require.NoError(t, err)
	require.NoError(t, transport.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")))
	d := sqltest.Next(t, feed, sqltest.Patience)

	var held []*pgxpool.Conn
	for range 2 {
		conn, err := pool.Acquire(ctx)
		require.NoError(t, err)
		held = append(held, conn)
	}
	other, err := s.Start(t, "lease", lease.String()).Subscribe(ctx, sub)
	require.NoError(t, err)
	s.awaitRenewal(t, s.DB(t), "m")
	waiting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = other.Next(waiting)
	require.ErrorIs(t, err, context.DeadlineExceeded, "another consumer got the message")
	require.Contains(t, log.String(), "pool exhausted")
	for _, conn := range held {
		conn.Release()
	}
	require.NoError(t, d.Settler.Ack())
}
