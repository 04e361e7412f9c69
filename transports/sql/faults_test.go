package sql_test

import (
	"bufio"
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
	"github.com/leatbus/leat/transports/transporttest"
)

// TestServer_isRestarted runs the whole contract on a server that the tests restart, PostgreSQL in immediate mode and
// MariaDB by a crash: clients lose their connections and their open transactions.
func TestServer_isRestarted(t *testing.T) {
	t.Parallel()
	restarted := func(t *testing.T, server *sqltest.Private, how syscall.Signal) {
		t.Parallel()
		transporttest.Run(t, transporttest.Harness{
			Open:    func(t testing.TB) driver.Transport { return server.System().Open(t) },
			URL:     server.URL,
			OpenURL: sqltest.OpenURL,
			Restart: func(t testing.TB) {
				server.Stop(t, how)
				server.Start(t)
			},
			OnlyRestart: true,
		})
	}
	t.Run("postgres", func(t *testing.T) { restarted(t, sqltest.NewPrivatePostgres(t), syscall.SIGQUIT) })
	t.Run("mariadb", func(t *testing.T) { restarted(t, sqltest.NewPrivateMariaDB(t), syscall.SIGKILL) })
}

func TestConnections_terminatedUnderLoad(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	name := "leat_" + s.Config.Schema
	transport := s.Start(t, "application_name", name)
	l, stop := load(t, transport, transport, sqltest.Subscription("shop.ledger", 4, "order.paid.v1"))
	db := s.DB(t)
	for round := range 5 {
		l.waitAccepted(t, (round+1)*200)
		sqltest.Run(t, db, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`, name)
	}
	stop()
	accepted, missing, twice := l.balance()
	require.Zero(t, missing)
	t.Logf("%d accepted, %d handled twice", accepted, twice)
}

func TestConnections_killedUnderLoadOnMySQL(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	transport := s.Start(t)
	l, stop := load(t, transport, transport, sqltest.Subscription("shop.ledger", 4, "order.paid.v1"))
	db := s.DB(t)
	for round := range 3 {
		l.waitAccepted(t, (round+1)*200)
		killConnections(t, db)
	}
	stop()
	accepted, missing, twice := l.balance()
	require.Zero(t, missing)
	t.Logf("%d accepted, %d handled twice", accepted, twice)
}

func killConnections(t *testing.T, db *stdsql.DB) {
	rows, err := db.QueryContext(sqltest.Context(t), `SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()`)
	require.NoError(t, err)
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		require.NoError(t, rows.Scan(&id))
		ids = append(ids, id)
	}
	require.NoError(t, rows.Err())
	for _, id := range ids {
		_, _ = db.ExecContext(sqltest.Context(t), fmt.Sprintf("KILL %d", id)) // the connection may have ended
	}
}

func TestServer_isReadOnlyForAWhile(t *testing.T) {
	t.Parallel()
	readOnly := func(t *testing.T, s system, on, off func()) {
		transport := s.Start(t)
		l, stop := load(t, transport, transport, sqltest.Subscription("shop.ledger", 2, "order.paid.v1"))
		l.waitAccepted(t, 100)
		on()
		before := -1
		require.Eventually(t, func() bool { // statements that had started succeed
			last := before
			before, _, _ = l.balance()
			return before == last
		}, sqltest.Patience, 200*time.Millisecond, "the server is not read-only")
		off()
		l.waitAccepted(t, before+100)
		stop()
		_, missing, _ := l.balance()
		require.Zero(t, missing)
	}
	t.Run("postgres", func(t *testing.T) {
		server := sqltest.NewPrivatePostgres(t)
		readOnly(t, system{server.System()}, func() {
			server.Run(t, `ALTER SYSTEM SET default_transaction_read_only = on`)
			server.Run(t, `SELECT pg_reload_conf()`)
		}, func() {
			server.Run(t, `ALTER SYSTEM RESET default_transaction_read_only`)
			server.Run(t, `SELECT pg_reload_conf()`)
		})
	})
	t.Run("mariadb", func(t *testing.T) {
		server := sqltest.NewPrivateMariaDB(t)
		server.Run(t, `CREATE USER service@'%' IDENTIFIED BY 'leat'`) // root may write to a read-only server
		server.Run(t, `GRANT ALL ON test.* TO service@'%'`)
		s := system{server.System()}
		s.URL = as(t, s.URL, "service")
		readOnly(t, s, func() { server.Run(t, `SET GLOBAL read_only = ON`) }, func() { server.Run(t, `SET GLOBAL read_only = OFF`) })
	})
}

// TestServer_failsOverToAStandby kills the primary under load and promotes its standby. The URL has both.
func TestServer_failsOverToAStandby(t *testing.T) {
	t.Parallel()
	primary := sqltest.NewPrivatePostgres(t)
	standby := primary.Standby(t)
	both, err := url.Parse(primary.URL)
	require.NoError(t, err)
	other, err := url.Parse(standby.URL)
	require.NoError(t, err)
	both.Host += "," + other.Host
	s := system{sqltest.System{URL: testenv.WithOption(t, both.String(), "target_session_attrs", "read-write")}}
	transport := s.Start(t)
	l, stop := load(t, transport, transport, sqltest.Subscription("shop.ledger", 4, "order.paid.v1"))
	l.waitAccepted(t, 300)
	primary.Stop(t, syscall.SIGQUIT)
	accepted, _, _ := l.balance()
	standby.Run(t, `SELECT pg_promote()`)
	l.waitAccepted(t, accepted+300)
	stop()
	accepted, missing, twice := l.balance()
	require.Zero(t, missing)
	t.Logf("%d accepted, %d handled twice", accepted, twice)
}

// TestPublish_waitsWithinItsContext checks that Publish ends with its context, and that the error has the database's last one.
func TestPublish_waitsWithinItsContext(t *testing.T) {
	t.Parallel()
	server := sqltest.NewPrivatePostgres(t)
	transport := server.System().Start(t)
	_, err := transport.Subscribe(sqltest.Context(t), sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
	require.NoError(t, err)
	server.Stop(t, syscall.SIGINT)
	ctx, cancel := context.WithTimeout(sqltest.Context(t), 300*time.Millisecond)
	defer cancel()
	err = transport.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	server.Start(t)
	require.NoError(t, transport.Publish(sqltest.Context(t), "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")))
}

// foreignVariable is how long TestInTx_openTransactionDelaysNothing keeps its transaction open; with 30s no timeout
// can hide a failure.
const foreignVariable = "LEAT_TEST_FOREIGN"

// TestInTx_openTransactionDelaysNothing checks that an open transaction that has published, and locked the rows it has read, delays
// nothing else, and that its messages are delivered after its commit.
func TestInTx_openTransactionDelaysNothing(t *testing.T) {
	t.Parallel()
	open := 3 * time.Second
	if d, err := time.ParseDuration(os.Getenv(foreignVariable)); err == nil {
		open = d
	}
	for name, on := range map[string]func(testing.TB) system{"postgres": onPostgres, "mysql": onMySQL} { // SQLite has one writer, so others must wait
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := on(t)
			transport := s.Start(t)
			ctx, cancel := context.WithTimeout(context.Background(), open+sqltest.Patience)
			defer cancel()
			feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
			require.NoError(t, err)
			before := latencies(t, transport, feed, time.Second)

			tx := sqltest.Begin(t, s.DB(t), stdsql.LevelRepeatableRead)
			publishInTx(t, tx, s.Config, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "foreign"))
			newcomer := s.Start(t)
			subscribed := make(chan error, 1)
			go func() {
				_, err := newcomer.Subscribe(ctx, sqltest.Subscription("shop.newcomer", 1, "order.new.v1"))
				subscribed <- err
			}()
			if s.Config.Dialect == sql.Postgres { // on MySQL it waits; see the package's documentation
				require.NoError(t, <-subscribed)
				close(subscribed)
			}
			during := latencies(t, transport, feed, open)
			again, err := s.Start(t).Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
			require.NoError(t, err, "start an instance meanwhile")
			require.NoError(t, again.Close(ctx))
			t.Logf("best %s, p50 %s; with the transaction open %s, %s", before[0], before[1], during[0], during[1])
			require.Less(t, during[0], open, "it does not wait for the transaction; bench/ has the figures")

			require.NoError(t, tx.Commit())
			require.NoError(t, <-subscribed)
			d := sqltest.Next(t, feed, sqltest.Patience)
			require.Equal(t, "foreign", driver.MessageID(d.Message))
			require.NoError(t, d.Settler.Ack())
		})
	}
}

// latencies returns the lowest and the median latency from the publish to the delivery.
func latencies(t *testing.T, transport driver.Transport, feed driver.Receiver, span time.Duration) [2]time.Duration {
	var all []time.Duration
	for i, end := 0, time.Now().Add(span); i < 20 || time.Now().Before(end); i++ {
		id := fmt.Sprintf("m-%d", i)
		began := time.Now()
		require.NoError(t, transport.Publish(sqltest.Context(t), "order.paid.v1", sqltest.NewMessage("order.paid.v1", id)))
		d := sqltest.Next(t, feed, sqltest.Patience)
		all = append(all, time.Since(began))
		require.Equal(t, id, driver.MessageID(d.Message))
		require.NoError(t, d.Settler.Ack())
		sqltest.Pace(sqltest.Context(t))
	}
	slices.Sort(all)
	return [2]time.Duration{all[0], all[len(all)/2]}
}

func TestOpen_manyInstancesAtOnce(t *testing.T) {
	t.Parallel()
	start := func(t *testing.T, s system, n int) {
		transports := make([]driver.Transport, n)
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range transports {
			wg.Go(func() { transports[i], errs[i] = sqltest.OpenURL(sqltest.Context(t), s.URL) })
		}
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
		for _, transport := range transports {
			sqltest.CloseNow(t, transport)
		}
		version, err := sql.MigrationStatus(sqltest.Context(t), s.DB(t), s.Config)
		require.NoError(t, err)
		require.Equal(t, sql.SchemaVersion, version)
	}
	t.Run("postgres", func(t *testing.T) { start(t, system{sqltest.NewPrivatePostgres(t).System()}, 50) })
	t.Run("mariadb", func(t *testing.T) { // a server of its own, since it uses all connections
		s := system{sqltest.NewPrivateMariaDB(t).System()}
		s.Config.Dialect = sql.MySQL
		start(t, s, 50)
	})
	t.Run("sqlite", func(t *testing.T) { start(t, onSQLite(t), 50) })
}

func TestServer_dumpIsRestored(t *testing.T) {
	t.Parallel()
	dump, psql := sqltest.Program(t, "postgres", "pg_dump"), sqltest.Program(t, "postgres", "psql")
	old, fresh := sqltest.NewPrivatePostgres(t), sqltest.NewPrivatePostgres(t)
	for range 100 { // advances the old server's transaction ids
		old.Run(t, `SELECT pg_current_xact_id()`)
	}
	first := old.System().Open(t)
	ctx := sqltest.Context(t)
	feed, err := first.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.>"))
	require.NoError(t, err)
	for i := range 20 {
		require.NoError(t, first.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", fmt.Sprintf("m-%d", i))))
	}
	require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Redeliver(10*time.Millisecond))
	sqltest.CloseNow(t, first)
	restore := exec.Command("sh", "-c", fmt.Sprintf("%s '%s' | %s -q -v ON_ERROR_STOP=1 '%s'", dump, old.URL, psql, fresh.URL))
	out, err := restore.CombinedOutput()
	require.NoError(t, err, string(out))

	second := fresh.System().Start(t)
	feed, err = second.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.>"))
	require.NoError(t, err)
	require.NoError(t, second.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "after")))
	seen := map[string]int{}
	for range 21 {
		d := sqltest.Next(t, feed, sqltest.Patience)
		seen[driver.MessageID(d.Message)]++
		require.NoError(t, d.Settler.Ack())
	}
	require.Len(t, seen, 21)
}

func TestServer_diskIsFull(t *testing.T) {
	t.Parallel()
	ctx := sqltest.Context(t)
	db, err := stdsql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "small.db")+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	db.SetMaxOpenConns(1)
	transport, err := sql.New(ctx, db, sql.Config{Dialect: sql.SQLite})
	require.NoError(t, err)
	defer sqltest.CloseNow(t, transport)
	feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
	require.NoError(t, err)
	sqltest.Run(t, db, "PRAGMA max_page_count = 60")
	accepted := 0
	for err == nil {
		msg := sqltest.NewMessage("order.paid.v1", fmt.Sprintf("m-%d", accepted))
		msg.Payload = make([]byte, 8<<10)
		if err = transport.Publish(ctx, "order.paid.v1", msg); err == nil {
			accepted++
		}
		require.Less(t, accepted, 100)
	}
	require.ErrorContains(t, err, "full")
	sqltest.Run(t, db, "PRAGMA max_page_count = 1000") // the disk has space again
	require.NoError(t, transport.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "after")))
	for range accepted + 1 {
		require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
	}
}

// childVariable makes this program a consumer that settles nothing until it is killed.
const childVariable = "LEAT_SQL_TEST_CHILD"

// TestLease_killedConsumersMessagesAreRedelivered kills a process while it handles messages. These are redelivered when the lease has expired, with
// their attempts counted, and no others are.
func TestLease_killedConsumersMessagesAreRedelivered(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t) // with a lease that is long enough for a busy machine
		ctx := sqltest.Context(t)
		sub := sqltest.Subscription("shop.ledger", 3, "order.paid.v1")
		feed, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		for i := range 10 {
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", fmt.Sprintf("m-%d", i))))
		}
		taken := startAndKill(t, testenv.WithOption(t, s.URL, "lease", "10s")) // a shorter one may expire before it is killed
		require.Len(t, taken, 3)
		attempts := map[string]int{}
		for range 10 {
			d := sqltest.Next(t, feed, sqltest.Patience)
			attempts[driver.MessageID(d.Message)] = d.Attempt
			require.NoError(t, d.Settler.Ack())
		}
		require.Len(t, attempts, 10)
		for _, id := range taken {
			require.Equal(t, 2, attempts[id], id)
			delete(attempts, id)
		}
		for id, attempt := range attempts {
			require.Equal(t, 1, attempt, "%s was not handed out to the one that died", id)
		}
	})
}

// TestLease_crashesCountAttempts checks that every delivery of a message counts as an attempt although the process dies, so that
// the retry step can poison it.
func TestLease_crashesCountAttempts(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport, ctx := s.Start(t), sqltest.Context(t)
		sub := sqltest.Subscription("shop.ledger", 3, "order.paid.v1")
		feed, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		require.NoError(t, feed.Close(ctx))
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", newMessages(3)...))
		const crashes = 4
		for range crashes {
			require.Len(t, startAndKill(t, testenv.WithOption(t, s.URL, "lease", "1h")), 3)
			sqltest.Run(t, s.DB(t), "UPDATE "+s.Table("consumers")+" SET expires_at = 0") // its lease expires
		}
		feed, err = transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		for range 3 {
			d := sqltest.Next(t, feed, sqltest.Patience)
			require.Equal(t, crashes+1, d.Attempt)
			require.NoError(t, d.Settler.Poison(ctx, driver.NewFault(d, errors.New("it kills"))))
		}
		n, err := transport.PoisonQueue(sub.Group).Len(ctx)
		require.NoError(t, err)
		require.Equal(t, 3, n)
	})
}

// startAndKill starts a child, kills it, and returns the messages that it had claimed.
func startAndKill(t *testing.T, raw string) (taken []string) {
	child := exec.Command(os.Args[0], "-test.run=TestChild")
	child.Env = append(os.Environ(), childVariable+"="+raw)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	lines := bufio.NewScanner(out)
	for len(taken) < 3 && lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "taken "); ok {
			taken = append(taken, id)
		}
	}
	require.NoError(t, child.Process.Kill())
	_, _ = io.Copy(io.Discard, out)
	_ = child.Wait() // it was killed
	return taken
}

func TestChild(t *testing.T) {
	raw := os.Getenv(childVariable)
	if raw == "" {
		t.Skip("for TestLease_killedConsumersMessagesAreRedelivered")
	}
	u, err := url.Parse(raw)
	require.NoError(t, err)
	transport, err := sql.Open(context.Background(), u)
	require.NoError(t, err)
	feed, err := transport.Subscribe(context.Background(), sqltest.Subscription("shop.ledger", 3, "order.paid.v1"))
	require.NoError(t, err)
	for range 3 {
		go func() {
			d, err := feed.Next(context.Background())
			if err == nil {
				fmt.Printf("taken %s\n", driver.MessageID(d.Message))
			}
		}()
	}
	select {}
}

// awaitRenewal blocks until the lease of the consumer that has the message is renewed.
func (s system) awaitRenewal(t *testing.T, db *stdsql.DB, uuid string) {
	t.Helper()
	expiry := func() int {
		return sqltest.Count(t, db, fmt.Sprintf("SELECT c.expires_at FROM %s c JOIN %s m ON m.owner = c.id WHERE m.uuid = '%s'", s.Table("consumers"), s.Table("messages"), uuid))
	}
	before := expiry()
	require.Eventually(t, func() bool { return expiry() > before }, sqltest.Patience, 100*time.Millisecond, "the lease is not renewed")
}

// TestLease_isRenewed checks that a handler may take much longer than the lease.
func TestLease_isRenewed(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		const lease = 45 * time.Second // a busy machine may renew it some seconds late
		first, second := s.Start(t, "lease", lease.String()), s.Start(t, "lease", lease.String())
		ctx := sqltest.Context(t)
		slow, err := first.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		require.NoError(t, first.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")))
		d := sqltest.Next(t, slow, sqltest.Patience)
		other, err := second.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		s.awaitRenewal(t, s.DB(t), "m")
		waiting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err = other.Next(waiting)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, d.Settler.Ack())
	})
}

// TestConflicts_locksOfOthers runs transactions of a user that lock leat's rows in every order and kill some of leat's connections.
func TestConflicts_locksOfOthers(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	transport := s.Start(t)
	l, stop := load(t, transport, transport, sqltest.Subscription("shop.ledger", 4, "order.paid.v1"))
	db := s.DB(t)
	table := pgx.Identifier{s.Config.Schema, "leat_messages"}.Sanitize()
	for round := range 10 {
		l.waitAccepted(t, (round+1)*50)
		tx := sqltest.Begin(t, db, stdsql.LevelDefault)
		_, err := tx.ExecContext(sqltest.Context(t), "SET LOCAL deadlock_timeout = '1min'") // so that a deadlock ends leat's transaction, not this one
		require.NoError(t, err)
		_, err = tx.ExecContext(sqltest.Context(t), "SELECT id FROM "+table+" ORDER BY id DESC FOR UPDATE")
		require.NoError(t, err)
		_, err = tx.ExecContext(sqltest.Context(t), `SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE '%'||$1||'%'`, s.Config.Schema)
		require.NoError(t, err)
		require.NoError(t, tx.Rollback())
	}
	stop()
}
