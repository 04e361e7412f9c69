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
	"github.com/leatbus/leat/transports/sql"
)

// withDocumentedRights returns the system for a user with the rights that the package's documentation lists, and a function that
// opens a transport over a pool of that user. The function is nil for SQLite, which has no users.
func (s system) withDocumentedRights(t testing.TB) (system, func(t testing.TB) driver.Transport) {
	if s.cfg.Dialect == sql.SQLite {
		return s, nil
	}
	closeNow(t, s.open(t)) // another user creates the tables
	name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	db, on := s.db(t), ""
	if s.cfg.Dialect == sql.Postgres {
		on = s.cfg.Schema + "."
		run(t, db, "CREATE ROLE "+name+" LOGIN PASSWORD 'leat'")
		t.Cleanup(func() {
			run(t, db, "DROP OWNED BY "+name)
			run(t, db, "DROP ROLE "+name)
		})
	} else {
		run(t, db, "CREATE USER "+name+"@'%' IDENTIFIED BY 'leat'")
		t.Cleanup(func() { run(t, db, "DROP USER "+name) })
	}
	for _, grant := range documentedGrants(t) {
		switch {
		case grant.postgres && s.cfg.Dialect != sql.Postgres:
		case grant.schema:
			run(t, db, fmt.Sprintf("GRANT %s ON SCHEMA %s TO %s", grant.rights, s.cfg.Schema, name))
		default:
			for _, table := range grant.on {
				run(t, db, fmt.Sprintf("GRANT %s ON %s%s TO %s", grant.rights, on, table, name))
			}
		}
	}
	s.url = as(t, withOption(t, s.url, "migrate", "check"), name)
	s.cfg.Migrate = sql.MigrateCheck
	if s.cfg.Dialect == sql.Postgres {
		pool, _ := s.pool(t)
		t.Cleanup(func() { require.NoError(t, pool.Ping(context.Background()), "the pool is the user's to close") })
		return s, func(t testing.TB) driver.Transport {
			transport, err := sql.NewPgx(testContext(t), pool, s.cfg)
			require.NoError(t, err)
			return transport
		}
	}
	pool := s.stdPool(t)
	t.Cleanup(func() { require.NoError(t, pool.PingContext(context.Background()), "the pool is the user's to close") })
	return s, func(t testing.TB) driver.Transport {
		transport, err := sql.New(testContext(t), pool, s.cfg)
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
	pool := s.db(t)
	one, err := sql.New(testContext(t), pool, s.cfg)
	require.NoError(t, err)
	other, err := sql.New(testContext(t), pool, s.cfg)
	require.NoError(t, err)
	sub := subscription("shop.ledger", 4, "order.paid.v1", "order.>")
	sub.Order = driver.OrderedByKey
	l, stop := load(t, one, other, sub)
	l.waitAccepted(t, 500)
	stop()
	_, missing, twice := l.balance()
	require.Zero(t, missing)
	require.Zero(t, twice)
	closeNow(t, one)
	closeNow(t, other)
	require.NoError(t, pool.PingContext(testContext(t)), "the pool is the user's to close")
}
