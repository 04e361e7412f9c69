package queue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// tripCounter counts the round trips of a pool.
type tripCounter struct{ n atomic.Int64 }

func (c *tripCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *tripCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (c *tripCounter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *tripCounter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *tripCounter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// pgxStore returns a database with its own schema, over a pgx pool.
func pgxStore(t *testing.T) (*database.DB, *tripCounter) {
	db, cfg, trips := pgxSchema(t)
	s, err := database.New(db, cfg)
	require.NoError(t, err)
	require.NoError(t, s.Prepare(t.Context()))
	return s, trips
}

func pgxSchema(t *testing.T) (*database.PgxPool, sqlconfig.Config, *tripCounter) {
	ctx := t.Context()
	cfg, err := pgxpool.ParseConfig(testenv.Postgres(t))
	require.NoError(t, err)
	trips := &tripCounter{}
	cfg.ConnConfig.Tracer = trips
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	schema := fmt.Sprintf("leat_together_%08x", rand.Uint32())
	run := func(ctx context.Context, query string) {
		testenv.Insist(t, func() error {
			_, err := pool.Exec(ctx, query)
			return err
		})
	}
	run(ctx, "CREATE SCHEMA "+schema)
	t.Cleanup(func() {
		run(context.Background(), "DROP SCHEMA "+schema+" CASCADE")
		pool.Close()
	})
	return &database.PgxPool{Pool: pool}, sqlconfig.Config{Dialect: sqlconfig.Postgres, Schema: schema}, trips
}

// TestGroupCommit_topicsShareARoundTrip checks that messages of different topics are inserted in one round trip, all or none.
func TestGroupCommit_topicsShareARoundTrip(t *testing.T) {
	ctx := t.Context()
	s, trips := pgxStore(t)
	for group, topics := range map[string][]string{"shop.ledger": {"order.paid.v1"}, "shop.audit": {"order.>"}} {
		_, err := newCore(s).groups.subscribe(ctx, driver.Subscription{Group: group, Topics: topics, Concurrency: 1}, 1+int64(len(topics[0])))
		require.NoError(t, err)
	}
	batches := func(uuids ...string) (all []batch) {
		for i, topic := range []string{"order.paid.v1", "order.sent.v1", "user.born.v1"} {
			all = append(all, batch{topic, []publication{{uuid: "first"}, {uuid: uuids[i]}}})
		}
		for i := range all {
			for j := range all[i].rows {
				all[i].rows[j].headers, all[i].rows[j].payload = []byte{}, []byte{}
			}
		}
		return all
	}
	for range 2 { // the first one prepares the statements
		trips.n.Store(0)
		inserted, err := publisher{s}.insertAll(ctx, batches("a", "b", "c"))
		require.NoError(t, err)
		require.Equal(t, []int64{4, 2, 0}, inserted)
		require.EqualValues(t, 1, trips.n.Load())
	}
	_, err := publisher{s}.insertAll(ctx, batches("a", "b", "a NUL\x00"))
	var refused *pgconn.PgError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "22021", refused.Code)
	n, _, err := database.Number(ctx, s.Pool, s.SQL(`SELECT count(*) FROM {messages}`))
	require.NoError(t, err)
	require.EqualValues(t, 12, n)
}
