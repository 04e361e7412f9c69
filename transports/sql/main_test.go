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

func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long a test waits for what must happen. It is generous: the machine may be busy with
// other things.
const patience = 3 * time.Minute

// system is a database of one test's own.
type system struct {
	url string
	cfg sql.Config // names its tables
}

// systems is one of each dialect.
func systems() map[string]func(t testing.TB) system {
	return map[string]func(t testing.TB) system{"postgres": onPostgres, "mysql": onMySQL, "sqlite": onSQLite}
}

func eachSystem(t *testing.T, test func(t *testing.T, s system)) {
	for name, open := range systems() {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// eachSystemAtOnce is for tests that wait more than they work.
func eachSystemAtOnce(t *testing.T, test func(t *testing.T, s system)) {
	eachSystem(t, func(t *testing.T, s system) {
		t.Parallel()
		test(t, s)
	})
}

// onPostgres has a schema of its own.
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

// onMySQL has a database of its own.
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

// dsn is the system as go-sql-driver/mysql names it.
func (s system) dsn(t testing.TB) string {
	u, err := url.Parse(s.url)
	require.NoError(t, err)
	cfg := mysql.NewConfig()
	cfg.Net, cfg.Addr, cfg.DBName, cfg.User = "tcp", u.Host, strings.TrimPrefix(u.Path, "/"), u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	return cfg.FormatDSN()
}

// db is the system's database without leat.
func (s system) db(t testing.TB) *stdsql.DB {
	db := openDB(t, s.url)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// open makes an instance. The caller closes it.
func (s system) open(t testing.TB, options ...string) driver.Transport {
	raw := s.url
	for i := 0; i < len(options); i += 2 {
		raw = withOption(t, raw, options[i], options[i+1])
	}
	transport, err := openURL(testContext(t), raw)
	require.NoError(t, err)
	return transport
}

// start is open, closed at the end of the test.
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
	u, err := url.Parse(raw)
	require.NoError(t, err)
	db, _, err := sql.OpenDB(u)
	require.NoError(t, err)
	return db
}

func run(t testing.TB, db *stdsql.DB, query string, args ...any) {
	t.Helper()
	_, err := db.ExecContext(context.Background(), query, args...)
	require.NoError(t, err)
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
