package sql_test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/transporttest"
)

// TestRightsThatAreDocumented runs the whole contract as a user who has the rights that the package's
// documentation lists and no others, over pools that are the user's.
func TestRightsThatAreDocumented(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		s := onPostgres(t)
		closeNow(t, s.open(t)) // somebody else makes the tables
		name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
		db := s.db(t)
		run(t, db, "CREATE ROLE "+name+" LOGIN PASSWORD 'leat'")
		t.Cleanup(func() {
			run(t, db, "DROP OWNED BY "+name)
			run(t, db, "DROP ROLE "+name)
		})
		for _, grant := range documentedGrants(t) {
			on, tables := "", grant.on
			if grant.schema {
				on, tables = "SCHEMA ", []string{s.cfg.Schema}
			}
			for _, table := range tables {
				if !grant.schema {
					table = s.cfg.Schema + "." + table
				}
				run(t, db, fmt.Sprintf("GRANT %s ON %s%s TO %s", grant.rights, on, table, name))
			}
		}
		s.url = as(t, withOption(t, s.url, "migrate", "check"), name)
		s.cfg.Migrate = sql.MigrateCheck
		pool, _ := s.pool(t)
		transporttest.Run(t, transporttest.Harness{
			Open: func(t testing.TB) driver.Transport {
				transport, err := sql.NewPgx(testContext(t), pool, s.cfg)
				require.NoError(t, err)
				return transport
			},
			URL:     s.url,
			OpenURL: openURL,
		})
		require.NoError(t, pool.Ping(testContext(t)), "the pool is the user's to close")
	})
	t.Run("mysql", func(t *testing.T) {
		t.Parallel()
		s := onMySQL(t)
		closeNow(t, s.open(t))
		name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
		db := s.db(t)
		run(t, db, "CREATE USER "+name+"@'%' IDENTIFIED BY 'leat'")
		t.Cleanup(func() { run(t, db, "DROP USER "+name) })
		for _, grant := range documentedGrants(t) {
			for _, table := range grant.on {
				if !grant.postgres {
					run(t, db, fmt.Sprintf("GRANT %s ON %s TO %s", grant.rights, table, name))
				}
			}
		}
		s.url = as(t, withOption(t, s.url, "migrate", "check"), name)
		s.cfg.Migrate = sql.MigrateCheck
		pool := s.stdPool(t)
		transporttest.Run(t, transporttest.Harness{
			Open: func(t testing.TB) driver.Transport {
				transport, err := sql.New(testContext(t), pool, s.cfg)
				require.NoError(t, err)
				return transport
			},
			URL:     s.url,
			OpenURL: openURL,
		})
		require.NoError(t, pool.PingContext(testContext(t)), "the pool is the user's to close")
	})
}

// grant is a line of the documentation.
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

// TestPostgresThroughDatabaseSQL: a pool of database/sql serves as well, without LISTEN.
func TestPostgresThroughDatabaseSQL(t *testing.T) {
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
