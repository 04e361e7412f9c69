package outbox_test

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// unencodable has a field that JSON can't encode.
type unencodable struct{ F func() }

func (unencodable) EventType() (name string, version int) { return "order.paid", 1 }

// busWith returns a bus with an outbox. Its transport is not used.
func busWith(t testing.TB, o driver.Outbox) *bus.Bus {
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Outbox: o})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close(context.Background())) })
	return b
}

// TestInTx_mistakes checks that each mistake is an error, and that nothing is written.
func TestInTx_mistakes(t *testing.T) {
	t.Run("no outbox", func(t *testing.T) {
		require.ErrorIs(t, busWith(t, nil).InTx(new(stdsql.Tx)).Publish(t.Context(), sqltest.Paid{OrderID: "1"}), bus.ErrNoOutbox)
	})
	eachSystem(t, func(t *testing.T, s system) {
		o := s.outbox(t, outbox.Config{})
		b, db, ctx := busWith(t, o), s.Service(t), sqltest.Context(t)
		require.ErrorContains(t, b.InTx(nil).Publish(ctx, sqltest.Paid{OrderID: "1"}), "the transaction is nil")
		require.ErrorContains(t, b.InTx((*stdsql.Tx)(nil)).Publish(ctx, sqltest.Paid{OrderID: "1"}), "a nil *sql.Tx: it is not a supported transaction")
		require.ErrorContains(t, b.InTx(db).Publish(ctx, sqltest.Paid{OrderID: "1"}), "a *sql.DB: it is not a supported transaction")
		over := sqltest.Begin(t, db, stdsql.LevelDefault)
		require.NoError(t, over.Rollback())
		require.ErrorContains(t, b.InTx(over).Publish(ctx, sqltest.Paid{OrderID: "1"}), "the transaction is over; publish before its commit")

		tx := sqltest.Begin(t, db, stdsql.LevelDefault)
		require.ErrorContains(t, b.InTx(tx).Publish(ctx, nil), "event is nil")
		require.ErrorContains(t, b.InTx(tx).PublishAll(ctx, []bus.Event{sqltest.Paid{OrderID: "1"}, unencodable{}}), "event 2 of 2: order.paid.v1: encode")
		require.ErrorContains(t, b.InTx(tx).Publish(ctx, sqltest.Paid{OrderID: "1"}, bus.RequireRoute()), "RequireRoute doesn't work with an outbox")
		require.ErrorContains(t, b.InTx(tx).Publish(ctx, sqltest.Paid{OrderID: strings.Repeat("x", 17<<20)}), "at most 16777216 are allowed")
		require.NoError(t, tx.Commit())
		stats, err := b.OutboxStats(ctx)
		require.NoError(t, err)
		require.Zero(t, stats, "something was written")
	})
}

// TestInTx_anotherDatabase uses databases with leat's tables under the same names, without tables, and of another dialect.
func TestInTx_anotherDatabase(t *testing.T) {
	t.Parallel()
	publish := func(t *testing.T, b *bus.Bus, db *stdsql.DB, opts ...bus.PublishOption) error {
		tx := sqltest.Begin(t, db, stdsql.LevelDefault)
		defer func() { _ = tx.Rollback() }()
		return b.InTx(tx).Publish(sqltest.Context(t), sqltest.Paid{OrderID: "1"}, opts...)
	}
	for name, on := range systems() {
		t.Run(name, func(t *testing.T) {
			s, twin, empty := on(t), on(t), on(t)
			if name == "postgres" { // the tables are found by the search path
				s.URL, twin.URL, empty.URL = s.searched(t), twin.searched(t), empty.searched(t)
			}
			twin.outbox(t, outbox.Config{})
			b, ctx := busWith(t, s.outbox(t, outbox.Config{})), sqltest.Context(t)
			const want = "the transaction is not on the database that has these tables"
			require.ErrorContains(t, publish(t, b, twin.Service(t)), want)
			require.ErrorContains(t, publish(t, b, empty.Service(t)), want)
			for other, onOther := range systems() {
				if other != name {
					require.ErrorContains(t, publish(t, b, onOther(t).Service(t)), want, other)
				}
			}
			own, err := bus.New(s.Open(t), bus.Config{Service: "shop"})
			require.NoError(t, err)
			defer func() { require.NoError(t, own.Close(ctx)) }()
			require.ErrorContains(t, publish(t, own, twin.Service(t)), want)
			require.NoError(t, publish(t, own, s.Service(t)), "nobody wants it, which is counted")
			require.ErrorIs(t, publish(t, own, s.Service(t), bus.RequireRoute()), driver.ErrUnroutable)
		})
	}
}

// searched returns a URL that finds the system's tables by the search path.
func (s system) searched(t testing.TB) string {
	return testenv.WithOption(t, testenv.WithOption(t, s.URL, "search_path", s.Config.Schema), "schema", "")
}

// TestInTx_onItsOwnTransport checks that messages are inserted for the groups in the user's transaction.
func TestInTx_onItsOwnTransport(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport, ctx := s.Open(t), sqltest.Context(t)
		feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.*"))
		require.NoError(t, err)
		all, err := transport.Subscribe(ctx, sqltest.Subscription("shop.audit", 1, "order.>"))
		require.NoError(t, err)
		b, err := bus.New(transport, bus.Config{Service: "shop"})
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close(ctx)) }()
		db := s.Service(t)
		for i := range 4 {
			tx := sqltest.Begin(t, db, stdsql.LevelDefault)
			require.NoError(t, b.InTx(tx).Publish(ctx, sqltest.Paid{OrderID: fmt.Sprint(i)}))
			if i%2 == 0 {
				require.NoError(t, tx.Rollback())
			} else {
				require.NoError(t, tx.Commit())
			}
		}
		for _, want := range []string{"1", "3"} {
			d := sqltest.Next(t, all, sqltest.Patience)
			require.Equal(t, want, driver.PartitionKey(d.Message))
			require.NoError(t, d.Settler.Ack())
		}
		waiting, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		_, err = feed.Next(waiting)
		require.ErrorIs(t, err, context.DeadlineExceeded, "order.* does not take order.paid.v1")
	})
}

func TestInTx_pgx(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	pool, _ := s.Pool(t)
	ctx := sqltest.Context(t)
	o, err := outbox.NewPgx(ctx, pool, outbox.Config{Service: "shop", Tables: s.Config})
	require.NoError(t, err)
	defer func() { require.NoError(t, o.Close(context.Background())) }()
	f := &far{}
	relay(t, o, f)
	errUndone := errors.New("undone")
	for i := range 10 {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			require.NoError(t, o.PublishTx(ctx, tx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", fmt.Sprintf("m-%d", i)), sqltest.NewMessage("order.paid.v1", fmt.Sprintf("n-%d", i))))
			if i%2 == 0 {
				return errUndone
			}
			return nil
		})
		require.Equal(t, i%2 == 0, errors.Is(err, errUndone))
	}
	require.ElementsMatch(t, []string{"m-1", "n-1", "m-3", "n-3", "m-5", "n-5", "m-7", "n-7", "m-9", "n-9"}, f.await(t, 10))

	over, err := pool.Begin(ctx)
	require.NoError(t, err)
	require.NoError(t, over.Rollback(ctx))
	require.ErrorContains(t, o.PublishTx(ctx, over, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "x")), "the transaction is over")
}

// TestRelay_lateCommitIsNotLost runs transactions A and B: A has the lower id, and B commits first.
func TestRelay_lateCommitIsNotLost(t *testing.T) {
	t.Parallel()
	for name, on := range map[string]func(testing.TB) system{"postgres": onPostgres, "mysql": onMySQL} { // SQLite has one writer
		for _, key := range []string{"", "a"} {
			t.Run(name+" key="+key, func(t *testing.T) {
				s := on(t)
				o, db, f, ctx := s.outbox(t, outbox.Config{}), s.Service(t), &far{}, sqltest.Context(t)
				relay(t, o, f)
				for i := range 10 {
					var a *stdsql.Tx
					testenv.Insist(t, func() (err error) {
						a, err = published(ctx, db, o, keyed("order.paid.v1", key, 2*i))
						return err
					})
					inTx(t, db, o, keyed("order.paid.v1", key, 2*i+1))
					f.await(t, 2*i+1) // B is relayed, and A is not committed yet
					require.NoError(t, a.Commit())
					f.await(t, 2*i+2)
				}
			})
		}
	}
}

// TestRelay_blocksNoUserTransaction checks that the service's transactions succeed although a relay hangs in a
// claim and keeps its locks.
func TestRelay_blocksNoUserTransaction(t *testing.T) {
	t.Parallel()
	for name, on := range map[string]func(testing.TB) system{"postgres": onPostgres, "mysql": onMySQL} {
		t.Run(name, func(t *testing.T) {
			s := on(t)
			o, db, ctx := s.outbox(t, outbox.Config{}), s.Service(t), sqltest.Context(t)
			for i := range 20 {
				inTx(t, db, o, keyed("order.paid.v1", "a", i), keyed("order.paid.v1", "", i))
			}
			hung := sqltest.Begin(t, s.DB(t), stdsql.LevelReadCommitted)
			for _, query := range []string{
				"SELECT group_id FROM " + s.Named("leat_turns") + " FOR UPDATE",
				"SELECT id FROM " + s.Named("leat_messages") + " FOR UPDATE",
				"UPDATE " + s.Named("leat_messages") + " SET attempt = attempt + 1",
			} {
				_, err := hung.ExecContext(ctx, query)
				require.NoError(t, err)
			}
			for i := range 20 {
				inTx(t, db, o, keyed("order.paid.v1", "a", 20+i), keyed("order.paid.v1", "b", i), keyed("order.paid.v1", "", 100+i))
			}
			require.NoError(t, hung.Rollback())
			f := &far{}
			relay(t, o, f)
			f.await(t, 100)
		})
	}
}

// TestInTx_delayed checks that the outbox keeps a message until it is due, whether its transport supports delays or not.
func TestInTx_delayed(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		o, db, f, ctx := s.outbox(t, outbox.Config{}), s.Service(t), &far{}, sqltest.Context(t)
		b := busWith(t, o)
		relay(t, o, f)
		due := time.Now().Add(300 * time.Millisecond)
		tx := sqltest.Begin(t, db, stdsql.LevelDefault)
		require.NoError(t, b.InTx(tx).Publish(ctx, sqltest.Paid{OrderID: "1"}, bus.WithDelay(time.Until(due))))
		require.NoError(t, tx.Commit())
		f.await(t, 1)
		require.False(t, time.Now().Before(due))
	})
}

// TestTx_errorsNameConflictsOfSnapshots: at REPEATABLE READ and SERIALIZABLE, PostgreSQL refuses a transaction that conflicts with
// one that was committed meanwhile. The error says what to do, and keeps the server's.
func TestTx_errorsNameConflictsOfSnapshots(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	o, db, ctx := s.outbox(t, outbox.Config{}), s.Service(t), sqltest.Context(t)
	requireConflict := func(err error) {
		t.Helper()
		require.ErrorContains(t, err, "run the whole transaction again, or begin it at READ COMMITTED")
		var failed *pgconn.PgError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "40001", failed.Code)
	}
	runIn := func(tx *stdsql.Tx, query string) {
		t.Helper()
		_, err := tx.ExecContext(ctx, query)
		require.NoError(t, err)
	}
	sqltest.Run(t, db, "CREATE TABLE "+s.Named("orders")+" (id text)")

	// Each reads what the other writes.
	publishes, other := sqltest.Begin(t, db, stdsql.LevelSerializable), sqltest.Begin(t, db, stdsql.LevelSerializable)
	defer func() { _, _ = publishes.Rollback(), other.Rollback() }()
	runIn(publishes, "SELECT count(*) FROM "+s.Named("orders"))
	runIn(other, "SELECT count(*) FROM "+s.Table("messages"))
	runIn(other, "INSERT INTO "+s.Named("orders")+" VALUES ('other')")
	require.NoError(t, other.Commit())
	requireConflict(o.PublishTx(ctx, publishes, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")))
}
