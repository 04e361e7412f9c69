package queue

import (
	"context"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// TestPattern_matchesAsTheBus compares the database's matching of patterns with [driver.MatchTopic].
func TestPattern_matchesAsTheBus(t *testing.T) {
	t.Parallel()
	db, s := newTestStore(t)
	patterns := []string{">", "*", "a", "A", "a.*", "*.b", "a.>", "*.b.>", "a.*.c", "*.*.*", "a_b.*", "a%.c", "[a].*", "a|b.>", "?.b", "a.b.c.>"}
	for i, p := range patterns {
		st := storedPattern(s.Name, p)
		_, err := db.Exec(context.Background(), s.SQL(`INSERT INTO {subscriptions} (pattern, group_id, depth, matches, created_at) VALUES (?, ?, ?, ?, 0)`),
			st.pattern, i+1, st.depth, st.matches)
		require.NoError(t, err)
		_, err = db.Exec(context.Background(), s.SQL(`INSERT INTO {groups} (id, name, ordering, created_at) VALUES (?, ?, 0, 0)`), i+1, p)
		require.NoError(t, err)
	}
	segments := []string{"a", "b", "c", "A", "a_b", "aXb", "a%", "[a]", "a|b", "?", "%"}
	for range 300 {
		parts := make([]string, 1+rand.IntN(4))
		for i := range parts {
			parts[i] = segments[rand.IntN(len(segments))]
		}
		topic := strings.Join(parts, ".")
		query, args := insert(s.Statements, topic, []publication{{uuid: "u", headers: []byte{}, payload: []byte{}}}, wanted(s.Statements, topic))
		_, err := db.Exec(context.Background(), query, args...)
		require.NoError(t, err)
		got, err := database.Numbers(context.Background(), db, s.SQL(`SELECT group_id FROM {messages} WHERE topic = ? ORDER BY group_id`), topic)
		require.NoError(t, err)
		var want []int64
		for i, p := range patterns {
			if driver.MatchTopic(p, topic) {
				want = append(want, int64(i+1))
			}
		}
		require.Equal(t, want, got, topic)
		_, err = db.Exec(context.Background(), s.SQL(`DELETE FROM {messages}`))
		require.NoError(t, err)
	}
}

// newTestStore returns empty tables in a SQLite file.
func newTestStore(t *testing.T) (database.Pool, *database.DB) {
	db, err := database.Connect(config.Source{URL: mustParse(t, "sqlite://"+t.TempDir()+"/test.db"), Config: sqlconfig.Config{Dialect: sqlconfig.SQLite}})
	require.NoError(t, err)
	t.Cleanup(db.Close)
	s, err := database.New(db, sqlconfig.Config{Dialect: sqlconfig.SQLite})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(context.Background(), database.SchemaVersion))
	return db, s
}

// TestPrivateGroup_pendingReadsTheIndexAlone checks that Pending does not read the messages, which may be many and large.
func TestPrivateGroup_pendingReadsTheIndexAlone(t *testing.T) {
	db, s := newTestStore(t)
	plan, err := database.Collect(t.Context(), db, func(r database.Rows, text *string) error { var n int; return r.Scan(&n, &n, &n, text) },
		s.SQL(`EXPLAIN QUERY PLAN `+pendingQuery), slices.Repeat([]any{1, 1}, 4)...)
	require.NoError(t, err)
	require.Equal(t, 4, strings.Count(strings.Join(plan, "\n"), "SEARCH leat_messages USING COVERING INDEX"), plan)
}

// TestPrivateGroup_pendingStopsCountingAtABound: the messages that wait in an outbox may be millions, and each scrape counts them.
func TestPrivateGroup_pendingStopsCountingAtABound(t *testing.T) {
	eachStore(t, func(t *testing.T, transport *Transport) {
		g, err := NewPrivateGroup(t.Context(), transport, "shop.outbox")
		require.NoError(t, err)
		waitingKeys(t, transport.core.DB, g.group.name, 100, 0)
		n, oldest, err := g.Pending(t.Context())
		require.NoError(t, err)
		require.Equal(t, 100, n)
		require.Positive(t, oldest)
		if transport.core.Name != sqlconfig.SQLite {
			return // the query is the same, and the rows take seconds
		}
		waitingKeys(t, transport.core.DB, g.group.name, inspectAtMost, 0)
		n, _, err = g.Pending(t.Context())
		require.NoError(t, err)
		require.Equal(t, inspectAtMost, n)
	})
}

func mustParse(t *testing.T, raw string) *url.URL {
	u, err := url.Parse(raw)
	require.NoError(t, err)
	return u
}
