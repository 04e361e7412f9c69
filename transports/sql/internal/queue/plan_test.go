package queue

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// backlog subscribes groups to one topic and inserts n messages for each, interleaved as a publish does.
// Every key has eight messages.
func backlog(t testing.TB, s *database.DB, order driver.Order, groups, n int) (all []group) {
	ctx := context.Background()
	for i := range groups {
		sub := driver.Subscription{Group: fmt.Sprintf("shop.group%d", i), Topics: []string{"order.paid.v1"}, Concurrency: 1, Order: order}
		g, err := newCore(s).groups.subscribe(ctx, sub, newConsumerID())
		require.NoError(t, err)
		all = append(all, g)
	}
	_, err := s.Pool.Exec(ctx, s.SQL(`INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
		SELECT g.id, CASE WHEN g.ordering = 0 THEN 0 ELSE 4 END, CASE WHEN g.ordering = 0 THEN 0 ELSE hashint8(m.n / 8) END,
		hashint8(m.n / 8), {now}, 'order.paid.v1', m.n::text, '', 'payload'
		FROM generate_series(1, ?::integer) AS m(n) CROSS JOIN {groups} g ORDER BY m.n, g.id`), n)
	require.NoError(t, err)
	return all
}

// A planNode is a node of EXPLAIN's output.
type planNode struct {
	Type     string     `json:"Node Type"`
	Index    string     `json:"Index Name"`
	Relation string     `json:"Relation Name"`
	Subplan  string     `json:"Subplan Name"`
	Plans    []planNode `json:"Plans"`
}

// explain returns the plan of a prepared statement, for its arguments or generic, as mode says.
func explain(t testing.TB, db *database.PgxPool, mode, query string, args ...any) (root planNode, text string) {
	ctx := context.Background()
	conn, err := db.Pool.Acquire(ctx)
	require.NoError(t, err)
	defer conn.Release()
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(ctx) }()
	_, err = tx.Exec(ctx, "SET LOCAL plan_cache_mode = "+mode)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "PREPARE explained AS "+query, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	defer func() { _, _ = tx.Exec(ctx, "DEALLOCATE explained", pgx.QueryExecModeSimpleProtocol) }()
	values := make([]string, len(args))
	for i, a := range args {
		values[i] = fmt.Sprint(a)
	}
	var plans []struct{ Plan planNode }
	err = tx.QueryRow(ctx, "EXPLAIN (FORMAT JSON) EXECUTE explained ("+strings.Join(values, ", ")+")", pgx.QueryExecModeSimpleProtocol).Scan(&text)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(text), &plans))
	return plans[0].Plan, text
}

// find returns the nodes of the plan for which f is true.
func (p planNode) find(f func(planNode) bool) (all []planNode) {
	if f(p) {
		all = append(all, p)
	}
	for _, child := range p.Plans {
		all = append(all, child.find(f)...)
	}
	return all
}

// TestClaim_readsTheIndexInOrderAfterAnalyze checks the plan of a claim after the table was analyzed while no message was
// claimed. From such statistics the planner may expect that a claim finds almost no rows, and sort the whole backlog.
func TestClaim_readsTheIndexInOrderAfterAnalyze(t *testing.T) {
	s, _ := pgxStore(t)
	groups := backlog(t, s, driver.Unordered, 5, 20_000)
	_, err := s.Pool.Exec(t.Context(), s.SQL(`ANALYZE {messages}`))
	require.NoError(t, err)
	requireClaimsInOrder(t, s, groups[2].id)

	// In the middle of the backlog, with some messages handled and some claimed.
	_, err = s.Pool.Exec(t.Context(), s.SQL(`DELETE FROM {messages} WHERE id % 3 = 0`))
	require.NoError(t, err)
	_, err = s.Pool.Exec(t.Context(), s.SQL(`UPDATE {messages} SET owner = 1 + id % 7 WHERE id % 50 = 1`))
	require.NoError(t, err)
	_, err = s.Pool.Exec(t.Context(), s.SQL(`ANALYZE {messages}`))
	require.NoError(t, err)
	requireClaimsInOrder(t, s, groups[2].id)
}

func requireClaimsInOrder(t *testing.T, s *database.DB, g int64) {
	for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
		for _, limit := range []int{1, 10, 1000} {
			plan, text := explain(t, s.Pool.(*database.PgxPool), mode, s.SQL(claimPostgres), g, 0, g, g, limit, 1, 1<<20)
			read := plan.find(func(p planNode) bool { return p.Subplan == "CTE free" })
			require.Len(t, read, 1, text)
			inOrder := read[0].find(func(p planNode) bool { return strings.HasPrefix(p.Type, "Index") && p.Index == "leat_messages_queue" })
			sorts := read[0].find(func(p planNode) bool { return strings.Contains(p.Type, "Sort") || strings.HasPrefix(p.Type, "Bitmap") })
			require.NotEmpty(t, inOrder, "%s, limit %d: %s", mode, limit, text)
			require.Empty(t, sorts, "%s, limit %d: %s", mode, limit, text)
		}
	}
}

// drainVariable is how many messages each of five groups has in TestDrain_isAsQuickAfterAnalyze. With 200000, a claim that
// sorts the backlog is measurable; with a tenth of that it is not.
const drainVariable = "LEAT_TEST_DRAIN"

// TestDrain_isAsQuickAfterAnalyze compares how long it takes to consume a group's backlog before and after ANALYZE.
func TestDrain_isAsQuickAfterAnalyze(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(drainVariable))
	if err != nil {
		t.Skipf("takes half a minute; set %s=200000", drainVariable)
	}
	ctx := t.Context()
	s, _ := pgxStore(t)
	groups := backlog(t, s, driver.Unordered, 5, n)
	transport, err := Open(ctx, &database.PgxPool{Pool: s.Pool.(*database.PgxPool).Pool}, s.Config)
	require.NoError(t, err)
	defer func() { require.NoError(t, transport.Close(context.Background())) }()
	drain := func(g group) time.Duration {
		receiver, err := transport.Subscribe(ctx, driver.Subscription{Group: g.name, Topics: []string{"order.paid.v1"}, Concurrency: 10})
		require.NoError(t, err)
		began := time.Now()
		for range n {
			d, err := receiver.Next(ctx)
			require.NoError(t, err)
			require.NoError(t, d.Settler.Ack())
		}
		took := time.Since(began)
		require.NoError(t, receiver.Close(ctx))
		return took
	}
	before := min(drain(groups[0]), drain(groups[1]))
	_, err = s.Pool.Exec(ctx, s.SQL(`ANALYZE {messages}`))
	require.NoError(t, err)
	after := min(drain(groups[2]), drain(groups[3]))
	t.Logf("%d messages: %s before ANALYZE, %s after", n, before, after)
	require.Less(t, after, 2*before, "a claim after ANALYZE reads more than it takes")
}
