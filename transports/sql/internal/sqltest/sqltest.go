// Package sqltest has what the tests of the packages below transports/sql share: a database for each test, on every dialect.
package sqltest

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	_ "github.com/leatbus/leat/transports/sqlite" // the driver
)

// Patience is how long a test waits for an event. It is long, because the machine may be busy.
const Patience = 5 * time.Minute

// A System is a database for one test.
type System struct {
	URL    string
	Config sql.Config // for its tables
}

// Systems returns a constructor for each dialect.
func Systems() map[string]func(t testing.TB) System {
	return map[string]func(t testing.TB) System{"postgres": OnPostgres, "mysql": OnMySQL, "sqlite": OnSQLite}
}

// EachSystem runs a parallel test on each system.
func EachSystem(t *testing.T, test func(t *testing.T, s System)) {
	t.Parallel()
	for name, open := range Systems() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// OnPostgres returns a system with its own schema.
func OnPostgres(t testing.TB) System {
	raw := testenv.Postgres(t)
	schema := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	admin := OpenDB(t, raw)
	Run(t, admin, "CREATE SCHEMA "+schema)
	t.Cleanup(func() {
		Run(t, admin, "DROP SCHEMA "+schema+" CASCADE")
		require.NoError(t, admin.Close())
	})
	return System{URL: testenv.WithOption(t, raw, "schema", schema), Config: sql.Config{Dialect: sql.Postgres, Schema: schema}}
}

// OnMySQL returns a system with its own database.
func OnMySQL(t testing.TB) System { return OnMySQLAt(t, testenv.MySQL(t)) }

// OnMySQLAt returns a system with its own database on a server.
func OnMySQLAt(t testing.TB, raw string) System {
	name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	admin := OpenDB(t, raw)
	Run(t, admin, "CREATE DATABASE "+name)
	t.Cleanup(func() {
		Run(t, admin, "DROP DATABASE "+name)
		require.NoError(t, admin.Close())
	})
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.Path = "/" + name
	return System{URL: u.String(), Config: sql.Config{Dialect: sql.MySQL}}
}

// OnSQLite returns a system with its own file.
func OnSQLite(t testing.TB) System {
	return System{URL: "sqlite://" + filepath.Join(t.TempDir(), "leat.db"), Config: sql.Config{Dialect: sql.SQLite}}
}

// DSN returns the system's DSN for go-sql-driver/mysql.
func (s System) DSN(t testing.TB) string {
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.DBName, cfg.User = "tcp", u.Host, strings.TrimPrefix(u.Path, "/"), u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	return cfg.FormatDSN()
}

// DB opens the system's database with database/sql.
func (s System) DB(t testing.TB) *stdsql.DB {
	db := OpenDB(t, s.URL)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// ThroughProxy makes the system be reached through a proxy.
func (s *System) ThroughProxy(t testing.TB) *testenv.Proxy {
	t.Helper()
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	s.URL = u.String()
	return proxy
}

// Open returns an instance. The caller closes it.
func (s System) Open(t testing.TB, options ...string) driver.Transport {
	raw := s.URL
	for i := 0; i < len(options); i += 2 {
		raw = testenv.WithOption(t, raw, options[i], options[i+1])
	}
	transport, err := OpenURL(Context(t), raw)
	require.NoError(t, err)
	return transport
}

// Start returns an instance that is closed at the end of the test.
func (s System) Start(t testing.TB, options ...string) driver.Transport {
	transport := s.Open(t, options...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		require.NoError(t, transport.Close(ctx))
	})
	return transport
}

// OpenURL opens a transport.
func OpenURL(ctx context.Context, raw string) (driver.Transport, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	return sql.Open(ctx, u)
}

// OpenDB opens the database of a URL through database/sql.
func OpenDB(t testing.TB, raw string) *stdsql.DB {
	if !strings.HasPrefix(raw, "sqlite") {
		raw = testenv.WithOption(t, raw, "connect_timeout", "60") // the machine may be busy
	}
	u, err := url.Parse(raw)
	require.NoError(t, err)
	db, _, err := sql.OpenDB(u)
	require.NoError(t, err)
	return db
}

// Run executes a statement.
func Run(t testing.TB, db *stdsql.DB, query string, args ...any) {
	t.Helper()
	testenv.Insist(t, func() error {
		_, err := db.ExecContext(context.Background(), query, args...)
		return err
	})
}

// Count returns the number that a query returns.
func Count(t testing.TB, db *stdsql.DB, query string, args ...any) (n int) {
	t.Helper()
	testenv.Insist(t, func() error { return db.QueryRowContext(context.Background(), query, args...).Scan(&n) })
	return n
}

// Begin begins a transaction.
func Begin(t testing.TB, db *stdsql.DB, level stdsql.IsolationLevel) (tx *stdsql.Tx) {
	t.Helper()
	testenv.Insist(t, func() (err error) {
		tx, err = db.BeginTx(Context(t), &stdsql.TxOptions{Isolation: level})
		return err
	})
	return tx
}

// Context returns a context that ends after the test, or when the test has waited too long.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*Patience)
	t.Cleanup(cancel)
	return ctx
}

// Failures counts the errors of a pool's statements by their code.
type Failures struct {
	mu    sync.Mutex
	codes map[string]int
}

// TraceQueryStart implements [pgx.QueryTracer].
func (f *Failures) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (f *Failures) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if coded, ok := errors.AsType[*pgconn.PgError](data.Err); ok {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.codes[coded.Code]++
	}
}

// Count returns how many statements have failed with a code.
func (f *Failures) Count(code string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.codes[code]
}

// Pool returns a pool of a user with settings of the server.
func (s System) Pool(t testing.TB, settings ...string) (*pgxpool.Pool, *Failures) {
	raw, _, _ := strings.Cut(s.URL, "?")
	cfg, err := pgxpool.ParseConfig(raw + "?sslmode=disable")
	require.NoError(t, err)
	for i := 0; i < len(settings); i += 2 {
		cfg.ConnConfig.RuntimeParams[settings[i]] = settings[i+1]
	}
	f := &Failures{codes: map[string]int{}}
	cfg.ConnConfig.Tracer = f
	pool, err := pgxpool.NewWithConfig(Context(t), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool, f
}

// WaitBlocked blocks until a statement with this beginning, of the transport or of another one, waits for a lock.
func (s System) WaitBlocked(t testing.TB, db *stdsql.DB, statement string) {
	t.Helper()
	query := `SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '` + statement + `%` + s.Config.Schema + `%'`
	if s.Config.Dialect == sql.MySQL {
		query = `SELECT count(*) FROM information_schema.processlist p JOIN information_schema.innodb_trx x ON x.trx_mysql_thread_id = p.id
			WHERE x.trx_state = 'LOCK WAIT' AND p.db = DATABASE() AND p.info LIKE '` + statement + `%'`
	}
	// InnoDB caches its list of transactions until it was not read for 100 ms.
	require.Eventually(t, func() bool { return Count(t, db, query) > 0 }, Patience, 250*time.Millisecond, "no statement waits")
}

// Table returns the name of one of leat's tables for statements.
func (s System) Table(name string) string {
	if s.Config.Schema == "" {
		return "leat_" + name
	}
	return s.Config.Schema + ".leat_" + name
}

// Service returns a pool of a service.
func (s System) Service(t testing.TB) *stdsql.DB {
	if s.Config.Dialect != sql.SQLite {
		return s.DB(t)
	}
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	db, err := stdsql.Open("sqlite", "file:"+u.Path+"?_pragma=busy_timeout(180000)&_txlock=immediate")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// Paid is an event with a key.
type Paid struct{ OrderID string }

// EventType implements bus.Event.
func (Paid) EventType() (name string, version int) { return "order.paid", 1 }

// PartitionKey returns the id of the order.
func (p Paid) PartitionKey() string { return p.OrderID }

// Tables creates tables of an application.
func (s System) Tables(t testing.TB, db *stdsql.DB) {
	Run(t, db, "CREATE TABLE "+s.Named("accounts")+" (id INT PRIMARY KEY, cents BIGINT NOT NULL)")
	Run(t, db, "CREATE TABLE "+s.Named("bookings")+" (event VARCHAR(100) NOT NULL)")
	Run(t, db, "INSERT INTO "+s.Named("accounts")+" VALUES (1, 0), (2, 0)")
}

// Named returns the name of a table of the application for statements.
func (s System) Named(name string) string {
	if s.Config.Schema != "" {
		return s.Config.Schema + "." + name
	}
	return name
}

// Subscription returns the subscription of a group that is not ordered.
func Subscription(group string, concurrency int, topics ...string) driver.Subscription {
	return driver.Subscription{Group: group, Topics: topics, Known: topics, Concurrency: concurrency}
}

// NewMessage returns a message of an event.
func NewMessage(topic, id string) *message.Message {
	msg := message.NewMessage(id, []byte(`{"id":"`+id+`"}`))
	msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: topic}
	return msg
}

// CloseNow closes a transport.
func CloseNow(t testing.TB, transport driver.Transport) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	require.NoError(t, transport.Close(ctx))
}

// Deadlock runs an update in tx that fails with a deadlock, for which the server rolls tx back. The other transaction
// is rolled back at the end.
func Deadlock(t *testing.T, s System, db *stdsql.DB, tx *stdsql.Tx) {
	ctx := Context(t)
	other := Begin(t, db, stdsql.LevelDefault)
	defer func() { _ = other.Rollback() }()
	add := func(tx *stdsql.Tx, account int) error {
		_, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE %s SET cents = cents + 100 WHERE id = %d", s.Named("accounts"), account))
		return err
	}
	for range 5 { // it has more changes, so InnoDB rolls back the other one
		_, err := other.ExecContext(ctx, "INSERT INTO "+s.Named("bookings")+" VALUES ('a'), ('b'), ('c'), ('d')") //nolint:gosec // the test's own names
		require.NoError(t, err)
	}
	require.NoError(t, add(other, 2))
	require.NoError(t, add(tx, 1))
	waiting := make(chan error, 1)
	go func() { waiting <- add(other, 1) }()
	s.WaitBlocked(t, db, "UPDATE accounts")
	err := add(tx, 2)
	var failed *mysql.MySQLError
	require.True(t, errors.As(err, &failed) && failed.Number == 1213, "%v", err)
	require.NoError(t, <-waiting)
}

// KillsVariable is how often TestTransport_survivesKills kills workers, for example 200 in a nightly run.
const KillsVariable = "LEAT_TEST_KILLS"

// Next returns the next delivery.
func Next(t testing.TB, feed driver.Receiver, within time.Duration) *driver.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	d, err := feed.Next(ctx)
	require.NoError(t, err)
	return d
}

// Pace limits the rate of a load.
func Pace(ctx context.Context) {
	select {
	case <-time.After(time.Millisecond):
	case <-ctx.Done():
	}
}
