package inbox_test

import (
	"bufio"
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/inbox"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

func (s system) inbox(t testing.TB, db *stdsql.DB, cfg inbox.Config) *inbox.Inbox[*stdsql.Tx] {
	cfg.Tables = s.Config
	inbox, err := inbox.New(sqltest.Context(t), db, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, inbox.Close()) })
	return inbox
}

// book is the effect of a handler: it adds to a balance and inserts a row.
func (s system) book(ctx context.Context, tx *stdsql.Tx, account int, event string) error {
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE %s SET cents = cents + 1 WHERE id = %d", s.Named("accounts"), account)); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO %s VALUES ('%s')", s.Named("bookings"), event))
	return err
}

// TestInbox_sameMessageFiftyTimesAtOnce handles one message fifty times at once while half of the handler's runs fail. The
// effect must happen once.
func TestInbox_sameMessageFiftyTimesAtOnce(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db := s.Service(t)
		s.Tables(t, db)
		var runs atomic.Int64
		handler := handlers.Tx("ledger", s.inbox(t, db, inbox.Config{}), func(ctx context.Context, tx *stdsql.Tx, e sqltest.Paid) error {
			if err := s.book(ctx, tx, 1, e.OrderID); err != nil {
				return err
			}
			switch runs.Add(1) % 4 {
			case 1:
				return errors.New("failed")
			case 3:
				panic("failed")
			}
			return nil
		}, handlers.Concurrency(50), handlers.Dedup(bus.DedupOff), handlers.Retry(bus.RetryPolicy{Delays: append(make([]time.Duration, 60), time.Second)}))
		b := consuming(t, handler)
		for range 50 {
			require.NoError(t, b.Publish(sqltest.Context(t), sqltest.Paid{OrderID: "o-1"}, bus.WithID("the-same")))
		}
		require.NoError(t, b.Idle(sqltest.Context(t)))
		require.Equal(t, 1, sqltest.Count(t, db, "SELECT cents FROM "+s.Named("accounts")+" WHERE id = 1"))
		require.Equal(t, 1, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("bookings")))
		stats := b.Stats().Groups["ledger"]
		require.EqualValues(t, 1, stats.Handled)
		require.EqualValues(t, 49, stats.Duplicates)
	})
}

// consuming returns a bus on the memory transport that runs the handler until the end of the test.
func consuming(t testing.TB, handler bus.Handler) *bus.Bus {
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Stack: middleware.Standard(middleware.Config{})})
	require.NoError(t, err)
	require.NoError(t, b.Handle(handler))
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	<-b.Running()
	t.Cleanup(func() {
		require.NoError(t, b.Close(context.Background()))
		require.NoError(t, <-ended)
	})
	return b
}

// TestInbox_retriesDeadlocks runs handlers that lock two rows in opposite orders.
func TestInbox_retriesDeadlocks(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db := s.Service(t)
		s.Tables(t, db)
		const n = 24
		handler := handlers.Tx("ledger", s.inbox(t, db, inbox.Config{Isolation: stdsql.LevelSerializable}), func(ctx context.Context, tx *stdsql.Tx, e sqltest.Paid) error {
			first := int(e.OrderID[len(e.OrderID)-1]) % 2
			if s.Config.Dialect == sql.Postgres { // which checks for deadlocks after a second
				if _, err := tx.ExecContext(ctx, "SET LOCAL deadlock_timeout = '10ms'"); err != nil {
					return err
				}
			}
			if err := s.book(ctx, tx, 1+first, e.OrderID); err != nil {
				return err
			}
			return s.book(ctx, tx, 2-first, e.OrderID)
		}, handlers.Concurrency(4), handlers.Dedup(bus.DedupOff), handlers.Retry(bus.RetryPolicy{Delays: make([]time.Duration, 1000)}))
		b := consuming(t, handler)
		for i := range n {
			require.NoError(t, b.Publish(sqltest.Context(t), sqltest.Paid{OrderID: fmt.Sprintf("o-%d", i)}))
		}
		require.NoError(t, b.Idle(sqltest.Context(t)))
		require.Equal(t, n, sqltest.Count(t, db, "SELECT cents FROM "+s.Named("accounts")+" WHERE id = 1"))
		require.Equal(t, n, sqltest.Count(t, db, "SELECT cents FROM "+s.Named("accounts")+" WHERE id = 2"))
		require.Equal(t, 2*n, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("bookings")))
	})
}

func TestInbox_pgx(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	pool, _ := s.Pool(t)
	db, ctx := s.DB(t), sqltest.Context(t)
	s.Tables(t, db)
	inbox, err := inbox.NewPgx(ctx, pool, inbox.Config{Tables: s.Config})
	require.NoError(t, err)
	defer func() { require.NoError(t, inbox.Close()) }()
	book := func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO "+s.Named("bookings")+" VALUES ('x')")
		return err
	}
	for _, group := range []string{"shop.ledger", "shop.mail"} {
		for want := range 3 {
			seen, err := inbox.Once(ctx, group, strings.Repeat("long", 100)+"\x00", book)
			require.NoError(t, err)
			require.Equal(t, want > 0, seen)
		}
	}
	errFailed := errors.New("failed")
	_, err = inbox.Once(ctx, "shop.ledger", "other", func(ctx context.Context, tx pgx.Tx) error { return errors.Join(book(ctx, tx), errFailed) })
	require.ErrorIs(t, err, errFailed)
	over, cancel := context.WithCancel(ctx)
	_, err = inbox.Once(over, "shop.ledger", "third", func(ctx context.Context, tx pgx.Tx) error {
		defer cancel()
		return book(ctx, tx)
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 2, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("bookings")))
	require.Equal(t, 2, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("leat_inbox")))
	require.NoError(t, inbox.Check(ctx))
	sqltest.Run(t, db, "ALTER TABLE "+s.Named("leat_inbox")+" RENAME TO gone")
	require.ErrorContains(t, inbox.Check(ctx), "leat_inbox")
}

// TestInbox_deletesExpiredIDs checks that expired ids are deleted, although transactions are open, and others are not.
func TestInbox_deletesExpiredIDs(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db, ctx := s.Service(t), sqltest.Context(t)
		nothing := func(context.Context, *stdsql.Tx) error { return nil }
		long := s.inbox(t, db, inbox.Config{Keep: time.Hour})
		for i := range 1500 {
			_, err := long.Once(ctx, "shop.ledger", fmt.Sprintf("m-%d", i), nothing)
			require.NoError(t, err)
		}
		sqltest.Run(t, db, "UPDATE "+s.Named("leat_inbox")+" SET seen_at = seen_at - 3600000000 WHERE message_id <> 'm-7'")
		short := s.inbox(t, db, inbox.Config{Keep: time.Second}) // which cleans the groups it is used for
		_, err := short.Once(ctx, "shop.ledger", "m-8", nothing)
		require.NoError(t, err)
		if s.Config.Dialect != sql.SQLite { // which has one writer
			_, err := long.Once(ctx, "shop.ledger", "open", func(ctx context.Context, _ *stdsql.Tx) error {
				awaitRows(t, s, db, 0)
				return nil
			})
			require.NoError(t, err)
		}
		awaitRows(t, s, db, 0)
		seen, err := short.Once(ctx, "shop.ledger", "m-7", nothing)
		require.NoError(t, err)
		require.False(t, seen)
	})
}

// TestInbox_forgetsOnlyIdsOfItsOwnGroups checks that a service that shares the tables may keep its ids longer.
func TestInbox_forgetsOnlyIdsOfItsOwnGroups(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db, ctx := s.Service(t), sqltest.Context(t)
		nothing := func(context.Context, *stdsql.Tx) error { return nil }
		billing, mail := s.inbox(t, db, inbox.Config{}), s.inbox(t, db, inbox.Config{Keep: time.Second})
		for _, id := range []string{"m-1", "m-2"} {
			_, err := billing.Once(ctx, "billing.ledger", id, nothing)
			require.NoError(t, err)
			_, err = mail.Once(ctx, "mail.sender", id, nothing)
			require.NoError(t, err)
		}
		awaitRows(t, s, db, 2)
		seen, err := billing.Once(ctx, "billing.ledger", "m-1", nothing)
		require.NoError(t, err)
		require.True(t, seen, "its handler runs twice")
	})
}

// TestInbox_forgetsIdsOfGroupsThatItLearnsOfLater checks that ids of a new group are deleted although the cursor is past them.
func TestInbox_forgetsIdsOfGroupsThatItLearnsOfLater(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db, ctx := s.Service(t), sqltest.Context(t)
		nothing := func(context.Context, *stdsql.Tx) error { return nil }
		before, inbox := s.inbox(t, db, inbox.Config{}), s.inbox(t, db, inbox.Config{Keep: time.Second})
		_, err := before.Once(ctx, "mail.second", "old", nothing) // by an earlier process
		require.NoError(t, err)
		_, err = inbox.Once(ctx, "mail.first", "m-1", nothing)
		require.NoError(t, err)
		awaitRows(t, s, db, 1)
		_, err = inbox.Once(ctx, "mail.second", "m-1", nothing)
		require.NoError(t, err)
		awaitRows(t, s, db, 0)
	})
}

func awaitRows(t testing.TB, s system, db *stdsql.DB, n int) {
	require.Eventually(t, func() bool { return sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("leat_inbox")) == n }, sqltest.Patience, 20*time.Millisecond)
}

// bookerVariable makes this program a service that books messages until it is killed.
const bookerVariable = "LEAT_SQL_TEST_BOOKER"

// TestInbox_survivesKills kills processes whose handlers write in the inbox's transaction, at random points, while every
// message is published twice. Each must have its effect once.
func TestInbox_survivesKills(t *testing.T) {
	kills := 20
	if n, err := strconv.Atoi(os.Getenv(sqltest.KillsVariable)); err == nil {
		kills = n
	}
	eachSystem(t, func(t *testing.T, s system) {
		db := s.Service(t)
		s.Tables(t, db)
		transport, ctx := s.Start(t, "lease", "1s"), context.Background()
		_, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.*", "order.paid.*"))
		require.NoError(t, err)
		published, kills := 0, kills
		if s.Config.Dialect == sql.SQLite { // which has one writer
			kills = (kills + 1) / 2
		}
		for round := range kills {
			var booked atomic.Int64
			for ; published < 40*(round+1); published++ {
				for range 2 {
					msg := sqltest.NewMessage("order.paid.v1", fmt.Sprintf("m-%d", published))
					msg.Payload = fmt.Appendf(nil, `{"OrderID":"%s"}`, msg.UUID)
					require.NoError(t, transport.Publish(ctx, "order.paid.v1", msg))
				}
			}
			bookAndDie(t, testenv.WithOption(t, s.URL, "lease", "1s")+" "+s.Config.Schema, &booked)
		}
		last := startBooker(t, testenv.WithOption(t, s.URL, "lease", "1s")+" "+s.Config.Schema)
		defer func() {
			require.NoError(t, last.Process.Kill())
			_ = last.Wait()
		}()
		require.Eventually(t, func() bool {
			return sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("leat_messages")) == 0
		}, sqltest.Patience, 50*time.Millisecond)
		require.Equal(t, published, sqltest.Count(t, db, "SELECT cents FROM "+s.Named("accounts")+" WHERE id = 1"))
		require.Equal(t, published, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("bookings")))
		require.Equal(t, published, sqltest.Count(t, db, "SELECT count(DISTINCT event) FROM "+s.Named("bookings")))
	})
}

func startBooker(t *testing.T, arguments string) *exec.Cmd {
	booker := exec.Command(os.Args[0], "-test.run=TestBooker$")
	booker.Env = append(os.Environ(), bookerVariable+"="+arguments)
	require.NoError(t, booker.Start())
	return booker
}

// bookAndDie kills a booker after its handlers have run several times.
func bookAndDie(t *testing.T, arguments string, booked *atomic.Int64) {
	booker := exec.Command(os.Args[0], "-test.run=TestBooker$")
	booker.Env = append(os.Environ(), bookerVariable+"="+arguments)
	out, err := booker.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, booker.Start())
	until := 1 + rand.Int64N(30)
	for lines := bufio.NewScanner(out); lines.Scan() && booked.Load() < until; {
		if lines.Text() == "booked" {
			booked.Add(1)
		}
	}
	time.Sleep(rand.N(5 * time.Millisecond)) // a random point
	require.NoError(t, booker.Process.Kill())
	_ = booker.Wait() // it was killed
}

func TestBooker(t *testing.T) {
	raw, schema, ok := strings.Cut(os.Getenv(bookerVariable), " ")
	if !ok {
		t.Skip("for TestInbox_survivesKills")
	}
	ctx := context.Background()
	transport, err := sqltest.OpenURL(ctx, raw)
	require.NoError(t, err)
	u, err := url.Parse(raw)
	require.NoError(t, err)
	s := system{sqltest.System{URL: raw, Config: sql.Config{Dialect: sql.Dialect(u.Scheme), Schema: schema}}}
	inbox, err := inbox.New(ctx, s.Service(t), inbox.Config{Tables: s.Config})
	require.NoError(t, err)
	b, err := bus.New(transport, bus.Config{Service: "shop"})
	require.NoError(t, err)
	require.NoError(t, b.Handle(handlers.Tx("ledger", inbox, func(ctx context.Context, tx *stdsql.Tx, e sqltest.Paid) error {
		if err := s.book(ctx, tx, 1, e.OrderID); err != nil {
			return err
		}
		fmt.Println("booked")
		return nil
	}, handlers.Concurrency(4))))
	require.NoError(t, b.Run(ctx))
}

// TestInbox_aDeadlockThatTheHandlerSwallows checks that Once returns an error if the handler ignores a deadlock, for which
// MySQL has rolled back the whole transaction with the record of the message.
func TestInbox_aDeadlockThatTheHandlerSwallows(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	db := s.Service(t)
	s.Tables(t, db)
	inbox := s.inbox(t, db, inbox.Config{})
	_, err := inbox.Once(sqltest.Context(t), "shop.ledger", "m-1", func(_ context.Context, tx *stdsql.Tx) error {
		sqltest.Deadlock(t, s.System, db, tx)
		return nil
	})
	require.ErrorContains(t, err, "the database has rolled the transaction back, for a deadlock whose error was not returned")
	require.Zero(t, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("leat_inbox")))
	seen, err := inbox.Once(sqltest.Context(t), "shop.ledger", "m-1", func(ctx context.Context, tx *stdsql.Tx) error { return s.book(ctx, tx, 1, "m-1") })
	require.NoError(t, err)
	require.False(t, seen)
}

// TestInbox_errorsNameConflictsOfSnapshots: at REPEATABLE READ, PostgreSQL refuses the second of two transactions that handle a message
// at once. The error says what to do, and keeps the server's.
func TestInbox_errorsNameConflictsOfSnapshots(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	db, ctx := s.Service(t), sqltest.Context(t)
	inbox := s.inbox(t, db, inbox.Config{Isolation: stdsql.LevelRepeatableRead})
	second := make(chan error, 1)
	_, err := inbox.Once(ctx, "shop.ledger", "m", func(ctx context.Context, _ *stdsql.Tx) error {
		go func() {
			_, err := inbox.Once(ctx, "shop.ledger", "m", func(context.Context, *stdsql.Tx) error { return nil })
			second <- err
		}()
		waits := "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%" + s.Config.Schema + "%'"
		require.Eventually(t, func() bool { return sqltest.Count(t, db, waits) > 0 }, sqltest.Patience, time.Millisecond)
		return nil
	})
	require.NoError(t, err)
	err = <-second
	require.ErrorContains(t, err, "run the whole transaction again, or begin it at READ COMMITTED")
	var failed *pgconn.PgError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, "40001", failed.Code)
}
