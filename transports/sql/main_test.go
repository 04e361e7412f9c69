package sql_test

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
)

func TestMain(m *testing.M) {
	testenv.AtOnce(4) // they mostly wait for servers and leases
	testenv.Main(m)
}

// patience is how long a test waits for an event. It is long, because the machine may be busy.
const patience = 5 * time.Minute

// A system is a database for one test.
type system struct {
	url string
	cfg sql.Config // for its tables
}

// systems returns a constructor for each dialect.
func systems() map[string]func(t testing.TB) system {
	return map[string]func(t testing.TB) system{"postgres": onPostgres, "mysql": onMySQL, "sqlite": onSQLite}
}

// eachSystem runs a parallel test on each system.
func eachSystem(t *testing.T, test func(t *testing.T, s system)) {
	t.Parallel()
	for name, open := range systems() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// onPostgres returns a system with its own schema.
func onPostgres(t testing.TB) system {
	raw := testenv.Postgres(t)
	schema := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	admin := openDB(t, raw)
	run(t, admin, "CREATE SCHEMA "+schema)
	t.Cleanup(func() {
		run(t, admin, "DROP SCHEMA "+schema+" CASCADE")
		require.NoError(t, admin.Close())
	})
	return system{url: withOption(t, raw, "schema", schema), cfg: sql.Config{Dialect: sql.Postgres, Schema: schema}}
}

// onMySQL returns a system with its own database.
func onMySQL(t testing.TB) system { return onMySQLAt(t, testenv.MySQL(t)) }

func onMySQLAt(t testing.TB, raw string) system {
	name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	admin := openDB(t, raw)
	run(t, admin, "CREATE DATABASE "+name)
	t.Cleanup(func() {
		run(t, admin, "DROP DATABASE "+name)
		require.NoError(t, admin.Close())
	})
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.Path = "/" + name
	return system{url: u.String(), cfg: sql.Config{Dialect: sql.MySQL}}
}

func onSQLite(t testing.TB) system {
	return system{url: "sqlite://" + filepath.Join(t.TempDir(), "leat.db"), cfg: sql.Config{Dialect: sql.SQLite}}
}

// dsn returns the system's DSN for go-sql-driver/mysql.
func (s system) dsn(t testing.TB) string {
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.DBName, cfg.User = "tcp", u.Host, strings.TrimPrefix(u.Path, "/"), u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	return cfg.FormatDSN()
}

// db opens the system's database with database/sql.
func (s system) db(t testing.TB) *stdsql.DB {
	db := openDB(t, s.url)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// throughProxy makes the system be reached through a proxy.
func (s *system) throughProxy(t testing.TB) *testenv.Proxy {
	t.Helper()
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	s.url = u.String()
	return proxy
}

// open returns an instance. The caller closes it.
func (s system) open(t testing.TB, options ...string) driver.Transport {
	raw := s.url
	for i := 0; i < len(options); i += 2 {
		raw = withOption(t, raw, options[i], options[i+1])
	}
	transport, err := openURL(testContext(t), raw)
	require.NoError(t, err)
	return transport
}

// start returns an instance that is closed at the end of the test.
func (s system) start(t testing.TB, options ...string) driver.Transport {
	transport := s.open(t, options...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, transport.Close(ctx))
	})
	return transport
}

func openURL(ctx context.Context, raw string) (driver.Transport, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	return sql.Open(ctx, u)
}

func openDB(t testing.TB, raw string) *stdsql.DB {
	if !strings.HasPrefix(raw, "sqlite") {
		raw = withOption(t, raw, "connect_timeout", "60") // the machine may be busy
	}
	u, err := url.Parse(raw)
	require.NoError(t, err)
	db, _, err := sql.OpenDB(u)
	require.NoError(t, err)
	return db
}

// run executes a statement.
func run(t testing.TB, db *stdsql.DB, query string, args ...any) {
	t.Helper()
	testenv.Insist(t, func() error {
		_, err := db.ExecContext(context.Background(), query, args...)
		return err
	})
}

// count returns the number that a query returns.
func count(t testing.TB, db *stdsql.DB, query string, args ...any) (n int) {
	t.Helper()
	testenv.Insist(t, func() error { return db.QueryRowContext(context.Background(), query, args...).Scan(&n) })
	return n
}

// begin begins a transaction.
func begin(t testing.TB, db *stdsql.DB, level stdsql.IsolationLevel) (tx *stdsql.Tx) {
	t.Helper()
	testenv.Insist(t, func() (err error) {
		tx, err = db.BeginTx(testContext(t), &stdsql.TxOptions{Isolation: level})
		return err
	})
	return tx
}

func withOption(t testing.TB, raw, name, value string) string {
	u, err := url.Parse(raw)
	require.NoError(t, err)
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	t.Cleanup(cancel)
	return ctx
}
