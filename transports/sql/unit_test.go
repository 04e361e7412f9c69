package sql

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestPattern_matchesAsTheBus compares the database's matching of patterns with [driver.MatchTopic].
func TestPattern_matchesAsTheBus(t *testing.T) {
	t.Parallel()
	db, s := newTestStore(t)
	patterns := []string{">", "*", "a", "A", "a.*", "*.b", "a.>", "*.b.>", "a.*.c", "*.*.*", "a_b.*", "a%.c", "[a].*", "a|b.>", "?.b", "a.b.c.>"}
	for i, p := range patterns {
		st := s.row(p)
		_, err := db.exec(context.Background(), s.sql(`INSERT INTO {subscriptions} (pattern, group_id, depth, matches, created_at) VALUES (?, ?, ?, ?, 0)`),
			st.pattern, i+1, st.depth, st.matches)
		require.NoError(t, err)
		_, err = db.exec(context.Background(), s.sql(`INSERT INTO {groups} (id, name, ordering, created_at) VALUES (?, ?, 0, 0)`), i+1, p)
		require.NoError(t, err)
	}
	segments := []string{"a", "b", "c", "A", "a_b", "aXb", "a%", "[a]", "a|b", "?", "%"}
	for range 300 {
		parts := make([]string, 1+rand.IntN(4))
		for i := range parts {
			parts[i] = segments[rand.IntN(len(segments))]
		}
		topic := strings.Join(parts, ".")
		query, args := s.insert(topic, []publication{{uuid: "u", headers: []byte{}, payload: []byte{}}}, s.wanted(topic))
		_, err := db.exec(context.Background(), query, args...)
		require.NoError(t, err)
		got, err := numbers(context.Background(), db, s.sql(`SELECT group_id FROM {messages} WHERE topic = ? ORDER BY group_id`), topic)
		require.NoError(t, err)
		var want []int64
		for i, p := range patterns {
			if driver.MatchTopic(p, topic) {
				want = append(want, int64(i+1))
			}
		}
		require.Equal(t, want, got, topic)
		_, err = db.exec(context.Background(), s.sql(`DELETE FROM {messages}`))
		require.NoError(t, err)
	}
}

// newTestStore returns empty tables in a SQLite file.
func newTestStore(t *testing.T) (pool, *database) {
	db, err := source{url: mustParse(t, "sqlite://"+t.TempDir()+"/test.db"), cfg: Config{Dialect: SQLite}}.connect()
	require.NoError(t, err)
	t.Cleanup(db.close)
	s, err := newDatabase(db, Config{Dialect: SQLite})
	require.NoError(t, err)
	require.NoError(t, schema{s}.migrate(context.Background(), SchemaVersion))
	return db, s
}

// TestOutbox_statsReadTheIndexAlone checks that Stats does not read the messages, which may be many and large.
func TestOutbox_statsReadTheIndexAlone(t *testing.T) {
	db, s := newTestStore(t)
	plan, err := collect(t.Context(), db, func(r rows, text *string) error { var n int; return r.Scan(&n, &n, &n, text) },
		s.sql(`EXPLAIN QUERY PLAN `+pendingQuery), slices.Repeat([]any{1, 1}, 4)...)
	require.NoError(t, err)
	require.Equal(t, 4, strings.Count(strings.Join(plan, "\n"), "SEARCH leat_messages USING COVERING INDEX"), plan)
}

// TestOutbox_statsStopCountingAtABound: the messages that wait in an outbox may be millions, and each scrape counts them.
func TestOutbox_statsStopCountingAtABound(t *testing.T) {
	eachStore(t, func(t *testing.T, transport *Transport) {
		o, err := newOutbox(t.Context(), transport, OutboxConfig{Service: "shop"})
		require.NoError(t, err)
		waitingKeys(t, transport.database, o.Group(), 100, 0)
		stats, err := o.Stats(t.Context())
		require.NoError(t, err)
		require.Equal(t, 100, stats.Pending)
		require.Positive(t, stats.OldestAge)
		if transport.name != SQLite {
			return // the query is the same, and the rows take seconds
		}
		waitingKeys(t, transport.database, o.Group(), inspectAtMost, 0)
		stats, err = o.Stats(t.Context())
		require.NoError(t, err)
		require.Equal(t, inspectAtMost, stats.Pending)
	})
}

// TestStates_haveTheSameNamesInTheTable compares the names in the table with those in statements.
func TestStates_haveTheSameNamesInTheTable(t *testing.T) {
	for _, name := range []Dialect{Postgres, MySQL, SQLite} {
		script, err := MigrationSQL(Config{Dialect: name}, 0)
		require.NoError(t, err)
		for n, state := range stateNames {
			require.Contains(t, script, fmt.Sprintf("(%d, '%s', '", n, state), name)
		}
		require.NotContains(t, script, fmt.Sprintf("(%d, '", len(stateNames)), name)
	}
}

func TestRetryable_errorCodes(t *testing.T) {
	pg, my, lite := postgresDialect(), mysqlDialect(), sqliteDialect()
	for _, code := range []string{"40001", "40P01", "57P01", "57014", "08006", "53300", "25006", "55P03", "25P03", "57P04"} {
		require.True(t, pg.retryable(fmt.Errorf("x: %w", &pgconn.PgError{Code: code})), code)
	}
	for _, code := range []string{"23505", "42P01", "22021", "42501", "28P01"} {
		require.False(t, pg.retryable(&pgconn.PgError{Code: code}), code)
	}
	for _, n := range []uint16{1020, 1205, 1213, 1467, 1290, 1040, 1053, 4031} {
		require.True(t, my.retryable(&mysql.MySQLError{Number: n}), n)
	}
	for _, n := range []uint16{1045, 1062, 1146, 1153} {
		require.False(t, my.retryable(&mysql.MySQLError{Number: n}), n)
	}
	for _, d := range []dialect{pg, my, lite} {
		require.True(t, d.retryable(errors.New("conn closed")))
		require.False(t, d.retryable(errors.New("something else")))
	}
}

func mustParse(t *testing.T, raw string) *url.URL {
	u, err := url.Parse(raw)
	require.NoError(t, err)
	return u
}

// TestInboxCursor_beginsAnewForAGroupThatComesDuringAPass checks that a new group rewinds the cursor, because the current pass ignores it.
func TestInboxCursor_beginsAnewForAGroupThatComesDuringAPass(t *testing.T) {
	c := inboxCursor{groups: make(map[string]bool)}
	c.use("mail.first")
	groups, from, pass := c.start()
	require.Equal(t, []any{"mail.first"}, groups)
	require.Zero(t, from)
	c.use("mail.second")
	c.move(pass, 100)
	groups, from, pass = c.start()
	require.Len(t, groups, 2)
	require.Zero(t, from)
	c.move(pass, 100)
	_, from, _ = c.start()
	require.EqualValues(t, 100, from)
}
