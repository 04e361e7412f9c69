package sql_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// withDocumentedRights returns the system for a user with the rights that the package's documentation lists, and a function that
// opens a transport over a pool of that user. The function is nil for SQLite, which has no users.
func (s system) withDocumentedRights(t testing.TB) (system, func(t testing.TB) driver.Transport) {
	if s.Config.Dialect == sql.SQLite {
		return s, nil
	}
	sqltest.CloseNow(t, s.Open(t)) // another user creates the tables
	name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	db, on := s.DB(t), ""
	if s.Config.Dialect == sql.Postgres {
		on = s.Config.Schema + "."
		sqltest.Run(t, db, "CREATE ROLE "+name+" LOGIN PASSWORD 'leat'")
		t.Cleanup(func() {
			sqltest.Run(t, db, "DROP OWNED BY "+name)
			sqltest.Run(t, db, "DROP ROLE "+name)
		})
	} else {
		sqltest.Run(t, db, "CREATE USER "+name+"@'%' IDENTIFIED BY 'leat'")
		t.Cleanup(func() { sqltest.Run(t, db, "DROP USER "+name) })
	}
	for _, grant := range documentedGrants(t) {
		switch {
		case grant.postgres && s.Config.Dialect != sql.Postgres:
		case grant.schema:
			sqltest.Run(t, db, fmt.Sprintf("GRANT %s ON SCHEMA %s TO %s", grant.rights, s.Config.Schema, name))
		default:
			for _, table := range grant.on {
				sqltest.Run(t, db, fmt.Sprintf("GRANT %s ON %s%s TO %s", grant.rights, on, table, name))
			}
		}
	}
	s.URL = as(t, testenv.WithOption(t, s.URL, "migrate", "check"), name)
	s.Config.Migrate = sql.MigrateCheck
	if s.Config.Dialect == sql.Postgres {
		pool, _ := s.Pool(t)
		t.Cleanup(func() { require.NoError(t, pool.Ping(context.Background()), "the pool is the user's to close") })
		return s, func(t testing.TB) driver.Transport {
			transport, err := sql.NewPgx(sqltest.Context(t), pool, s.Config)
			require.NoError(t, err)
			return transport
		}
	}
	pool := s.stdPool(t)
	t.Cleanup(func() { require.NoError(t, pool.PingContext(context.Background()), "the pool is the user's to close") })
	return s, func(t testing.TB) driver.Transport {
		transport, err := sql.New(sqltest.Context(t), pool, s.Config)
		require.NoError(t, err)
		return transport
	}
}

// A grant is a GRANT line of the documentation.
type grant struct {
	rights           string
	on               []string
	schema, postgres bool
}

func documentedGrants(t testing.TB) (all []grant) {
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	for line := range strings.Lines(string(doc)) {
		line, found := strings.CutPrefix(line, "//	GRANT ")
		if !found {
			continue
		}
		rights, rest, _ := strings.Cut(line, " ON ")
		names, comment, _ := strings.Cut(rest, " TO service;")
		on, schema := strings.CutPrefix(names, "SCHEMA ")
		all = append(all, grant{rights, strings.Split(on, ", "), schema, strings.Contains(comment, "PostgreSQL")})
	}
	require.Len(t, all, 6)
	return all
}

func as(t testing.TB, raw, name string) string {
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.User = url.UserPassword(name, "leat")
	return u.String()
}

// TestPostgres_throughDatabaseSQL checks that a pool of database/sql works, without LISTEN.
func TestPostgres_throughDatabaseSQL(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	pool := s.DB(t)
	one, err := sql.New(sqltest.Context(t), pool, s.Config)
	require.NoError(t, err)
	other, err := sql.New(sqltest.Context(t), pool, s.Config)
	require.NoError(t, err)
	sub := sqltest.Subscription("shop.ledger", 4, "order.paid.v1", "order.>")
	sub.Order = driver.OrderedByKey
	l, stop := load(t, one, other, sub)
	l.waitAccepted(t, 500)
	stop()
	_, missing, twice := l.balance()
	require.Zero(t, missing)
	require.Zero(t, twice)
	sqltest.CloseNow(t, one)
	sqltest.CloseNow(t, other)
	require.NoError(t, pool.PingContext(sqltest.Context(t)), "the pool is the user's to close")
}
