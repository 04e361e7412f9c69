package bench_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/prommetrics"
)

// TestScrape_manyGroups shows what a scrape of the groups' metrics costs on PostgreSQL, and how long the database counts.
// LEAT_TEST_LONG=1 makes it 1,000 groups and a million waiting messages.
//
//	LEAT_TEST_LONG=1 go test ./bench -run Scrape -v
func TestScrape_manyGroups(t *testing.T) {
	groups, waiting := 40, 4_000
	if os.Getenv("LEAT_TEST_LONG") != "" {
		groups, waiting = 1_000, 1_000_000
	}
	w := newSQLWorld(t)
	b, err := bus.New(w.open(t), bus.Config{Service: "bench", Stack: middleware.Standard(middleware.Config{})})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close(context.Background())) })
	for g := range groups {
		require.NoError(t, b.Handle(handlers.Func(fmt.Sprintf("h%04d", g), func(context.Context, orderPaid) error { return nil })))
	}
	fillGroups(t, w, groups, waiting)

	inspector := b.Transport().(driver.Inspector)
	var counting []time.Duration
	for range 5 {
		began := time.Now()
		all, err := inspector.Groups(t.Context())
		require.NoError(t, err)
		counting = append(counting, time.Since(began))
		total := 0
		for _, g := range all {
			require.Equal(t, waiting/groups, g.Waiting, g.Name)
			total += g.Waiting
		}
		require.Len(t, all, groups)
		require.Equal(t, waiting, total)
	}
	slices.Sort(counting)
	t.Logf("%d groups, %d waiting messages: the database counts them in %s (median of 5; at most %s)", groups, waiting, counting[2], counting[4])

	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, prommetrics.Groups(registry, b))
	var shown int
	scrape := func() time.Duration {
		began := time.Now()
		families, err := registry.Gather()
		took := time.Since(began)
		require.NoError(t, err)
		shown = 0
		for _, f := range families {
			if f.GetName() == "leat_group_waiting_messages" {
				shown = len(f.GetMetric())
			}
		}
		return took
	}
	first := scrape()
	t.Logf("first scrape: %s, shows %d groups", first, shown)
	began := time.Now()
	require.Eventually(t, func() bool { scrape(); return shown == groups }, time.Minute, 10*time.Millisecond)
	t.Logf("the values are there %s after the first scrape", time.Since(began)+first)
	var later []time.Duration
	for range 20 {
		later = append(later, scrape())
	}
	slices.Sort(later)
	t.Logf("later scrapes: %s (median of 20; at most %s)", later[10], later[19])
	require.Equal(t, groups, shown)
}

// fillGroups writes groups with messages that wait, as many in each.
func fillGroups(tb testing.TB, w sqlWorld, groups, waiting int) {
	w.run(tb, `INSERT INTO leat_groups (name, ordering, created_at) SELECT 'bench.h' || lpad(g::text, 4, '0'), 0, 0 FROM generate_series(0, $1::int - 1) g`, groups)
	w.run(tb, `INSERT INTO leat_subscriptions (pattern, group_id, depth, matches, created_at) SELECT 'order.paid.v1', id, 0, 'order.paid.v1', 0 FROM leat_groups`)
	w.run(tb, `INSERT INTO leat_turns (group_id, created_at) SELECT id, 0 FROM leat_groups ON CONFLICT DO NOTHING`)
	w.run(tb, `INSERT INTO leat_messages (pos, lane, first_at, group_id, state, topic, uuid, headers, payload)
		SELECT 0, 0, (extract(epoch FROM now()) * 1e6)::bigint, g.id, 0, 'order.paid.v1', gen_random_uuid()::text, '{}', decode(repeat('20', 200), 'hex')
		FROM generate_series(1, $1::int / $2::int), leat_groups g`, waiting, groups)
	w.run(tb, `VACUUM ANALYZE leat_messages`)
}
