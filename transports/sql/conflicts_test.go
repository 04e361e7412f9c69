package sql_test

import (
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// onPool returns a transport over a pool.
func (s system) onPool(t testing.TB, pool *pgxpool.Pool) driver.Transport {
	transport, err := sql.NewPgx(sqltest.Context(t), pool, s.Config)
	require.NoError(t, err)
	t.Cleanup(func() { sqltest.CloseNow(t, transport) })
	return transport
}

// A foreign is a transaction of another application.
type foreign struct {
	*stdsql.Tx
	t testing.TB
	s system
}

func (s system) foreign(t testing.TB, db *stdsql.DB) foreign {
	tx := sqltest.Begin(t, db, stdsql.LevelReadCommitted)
	t.Cleanup(func() { _ = tx.Rollback() }) // if the test fails
	return foreign{tx, t, s}
}

func (f foreign) run(query string, args ...any) {
	f.t.Helper()
	_, err := f.ExecContext(sqltest.Context(f.t), query, args...)
	require.NoError(f.t, err)
}

// lock waits for the lock on a message, and reports whether it got the lock.
func (f foreign) lock(id int64, how string) bool {
	f.t.Helper()
	err := f.lockRow(id, how)
	if errors.Is(err, stdsql.ErrNoRows) {
		return false
	}
	require.NoError(f.t, err)
	return true
}

// lockRow does the same and returns the error, for goroutines other than the test's.
func (f foreign) lockRow(id int64, how string) error {
	var got int64
	return f.QueryRowContext(sqltest.Context(f.t), fmt.Sprintf("SELECT id FROM %s WHERE id = %d FOR UPDATE %s", f.s.Table("messages"), id, how)).Scan(&got)
}

// conflict makes an ack of several messages wait for one of them, which the returned transaction has locked. The ack
// has locked the messages in front of that one, and not those behind it.
func conflict(t *testing.T, s system, transport driver.Transport) (tx foreign, c conflicting) {
	ctx := sqltest.Context(t)
	feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 6, "order.paid.v1"))
	require.NoError(t, err)
	require.NoError(t, transport.Publish(ctx, "order.paid.v1", newMessages(6)...))
	deliveries := make([]*driver.Delivery, 6)
	for i := range deliveries {
		deliveries[i] = sqltest.Next(t, feed, sqltest.Patience)
	}
	db := s.DB(t)
	id := func(n int) (id int64) {
		require.NoError(t, db.QueryRowContext(ctx, fmt.Sprintf("SELECT id FROM %s WHERE uuid = '%s'", s.Table("messages"), deliveries[n].Message.UUID)).Scan(&id))
		return id
	}
	c = conflicting{locked: id(1), awaited: id(4), beyond: id(5)}
	before, tx := s.foreign(t, db), s.foreign(t, db)
	require.True(t, before.lock(id(0), ""))
	require.True(t, tx.lock(c.awaited, ""))
	require.NoError(t, deliveries[0].Settler.Ack())
	s.WaitBlocked(t, db, "DELETE") // the other acks wait behind it
	for _, d := range deliveries[1:] {
		require.NoError(t, d.Settler.Ack())
	}
	require.NoError(t, before.Rollback())
	require.Eventually(t, func() bool {
		return sqltest.Count(t, db, "SELECT count(*) FROM "+s.Table("messages")) == 5
	}, sqltest.Patience, 10*time.Millisecond)
	require.Eventually(t, func() bool { // the ack has started, and runs until the locked message
		probe := s.foreign(t, db)
		free := probe.lock(c.locked, "SKIP LOCKED")
		return assert.NoError(t, probe.Rollback()) && !free
	}, sqltest.Patience, 10*time.Millisecond, "the ack has not locked anything")
	return tx, c
}

// conflicting has the ids of messages that an ack has locked, waits for, and will lock.
type conflicting struct{ locked, awaited, beyond int64 }

func requireAllHandled(t *testing.T, s system) {
	t.Helper()
	db := s.DB(t)
	require.Eventually(t, func() bool { return sqltest.Count(t, db, "SELECT count(*) FROM "+s.Table("messages")) == 0 },
		sqltest.Patience, 10*time.Millisecond, "the acks were lost")
}

// TestDeadlock checks that an ack is retried after a deadlock with a foreign transaction. The ack is the last of
// the two to wait, so PostgreSQL rolls it back: a waiting statement checks for deadlocks once, after a second.
func TestDeadlock(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(testing.TB) system{"postgres": onPostgres, "mysql": onMySQL} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			transport := s.Start(t)
			db := s.DB(t)
			if s.Config.Dialect == sql.MySQL {
				sqltest.Run(t, db, "CREATE TABLE heavy (id INT PRIMARY KEY)")
			}
			gate, ids := conflict(t, s, transport)
			tx := s.foreign(t, db)
			if s.Config.Dialect == sql.MySQL { // InnoDB rolls back the transaction with fewer changes
				tx.run("INSERT INTO heavy VALUES (0)" + manyValues(500))
			} else {
				tx.run("SET LOCAL deadlock_timeout = '1min'")
			}
			require.True(t, tx.lock(ids.beyond, ""))
			locked := make(chan bool, 1)
			go func() { locked <- assert.NoError(t, tx.lockRow(ids.locked, "")) }()
			s.WaitBlocked(t, db, "SELECT id")
			require.NoError(t, gate.Rollback()) // the ack continues to the row that tx has locked
			require.True(t, <-locked)
			require.NoError(t, tx.Rollback())
			requireAllHandled(t, s)
		})
	}
}

func manyValues(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ",(%d)", i+1)
	}
	return b.String()
}

// TestSerializationFailure checks that statements are retried on a pool whose transactions are serializable, where
// they fail more often than at READ COMMITTED.
func TestSerializationFailure(t *testing.T) {
	t.Parallel()
	t.Run("of an ack", func(t *testing.T) {
		s := onPostgres(t)
		pool, failures := s.Pool(t, "default_transaction_isolation", "serializable")
		tx, ids := conflict(t, s, s.onPool(t, pool))
		tx.run(fmt.Sprintf("UPDATE %s SET first_at = first_at WHERE id = %d", s.Table("messages"), ids.awaited))
		require.NoError(t, tx.Commit())
		requireAllHandled(t, s)
		require.Positive(t, failures.Count("40001"))
	})
	t.Run("under load", func(t *testing.T) {
		s := onPostgres(t)
		pool, failures := s.Pool(t, "default_transaction_isolation", "serializable")
		one, other := s.onPool(t, pool), s.onPool(t, pool)
		sub := sqltest.Subscription("shop.ledger", 4, "order.paid.v1")
		l, stop := load(t, one, one, sub)
		l.join(t, other, sub)
		l.waitAccepted(t, 1000)
		stop()
		_, missing, twice := l.balance()
		require.Zero(t, missing)
		require.Zero(t, twice)
		t.Logf("%d serialization failures", failures.Count("40001"))
	})
}

// TestStatementTimeout checks that statements are retried that the server cancels while the table is locked.
func TestStatementTimeout(t *testing.T) {
	t.Parallel()
	sub := sqltest.Subscription("shop.ledger", 4, "order.paid.v1")
	t.Run("postgres", func(t *testing.T) {
		s := onPostgres(t)
		sqltest.CloseNow(t, s.Open(t)) // creates the tables without the timeout
		pool, failures := s.Pool(t, "statement_timeout", "100")
		transport := s.onPool(t, pool)
		l, stop := load(t, transport, transport, sub)
		db := s.DB(t)
		for round := range 3 {
			l.waitAccepted(t, 200*(round+1))
			before, tx := failures.Count("57014"), s.foreign(t, db)
			tx.run("LOCK TABLE " + s.Table("messages") + " IN ACCESS EXCLUSIVE MODE")
			require.Eventually(t, func() bool { return failures.Count("57014") > before+5 }, sqltest.Patience, 10*time.Millisecond)
			require.NoError(t, tx.Rollback())
		}
		stop()
		_, missing, twice := l.balance()
		require.Zero(t, missing)
		require.Zero(t, twice)
	})
	t.Run("mariadb", func(t *testing.T) {
		s := onMySQL(t)
		db := s.DB(t)
		var version string
		require.NoError(t, db.QueryRowContext(sqltest.Context(t), "SELECT VERSION()").Scan(&version))
		if !strings.Contains(version, "MariaDB") {
			t.Skip("MySQL has a timeout for SELECT only")
		}
		sqltest.CloseNow(t, s.Open(t)) // creates the tables without the timeout
		transport, err := sql.New(sqltest.Context(t), s.stdPool(t, "max_statement_time", "0.1"), s.Config)
		require.NoError(t, err)
		t.Cleanup(func() { sqltest.CloseNow(t, transport) })
		l, stop := load(t, transport, transport, sub)
		exceeded := func() int {
			return sqltest.Count(t, db, "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'Max_statement_time_exceeded'")
		}
		for round := range 3 {
			l.waitAccepted(t, 200*(round+1))
			before := exceeded()
			conn, err := db.Conn(sqltest.Context(t))
			require.NoError(t, err)
			_, err = conn.ExecContext(sqltest.Context(t), "LOCK TABLES leat_messages WRITE")
			require.NoError(t, err)
			require.Eventually(t, func() bool { return exceeded() > before+5 }, sqltest.Patience, 10*time.Millisecond)
			_, err = conn.ExecContext(sqltest.Context(t), "UNLOCK TABLES")
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		}
		stop()
		_, missing, twice := l.balance()
		require.Zero(t, missing)
		require.Zero(t, twice)
	})
}

// stdPool returns a pool of a user on MySQL with settings of the server.
func (s system) stdPool(t testing.TB, settings ...string) *stdsql.DB {
	cfg, err := mysql.ParseDSN(s.DSN(t))
	require.NoError(t, err)
	cfg.Params = map[string]string{}
	for i := 0; i < len(settings); i += 2 {
		if settings[i] == "interpolateParams" { // an option of the driver, not of the session
			cfg.InterpolateParams = true
			continue
		}
		cfg.Params[settings[i]] = settings[i+1]
	}
	connector, err := mysql.NewConnector(cfg)
	require.NoError(t, err)
	db := stdsql.OpenDB(connector)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}
