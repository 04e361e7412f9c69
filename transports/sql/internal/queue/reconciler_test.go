package queue

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// askedPool is a pool that counts statements by a part of their text, and returns its ids for queries.
type askedPool struct {
	database.Pool
	took  time.Duration
	asked map[string]int
	ids   []int64
}

func (d *askedPool) note(query string) {
	time.Sleep(d.took)
	for part := range d.asked {
		if strings.Contains(query, part) {
			d.asked[part]++
		}
	}
}

func (d *askedPool) Exec(_ context.Context, query string, _ ...any) (int64, error) {
	d.note(query)
	return 0, nil
}

func (d *askedPool) Query(_ context.Context, query string, _ ...any) (database.Rows, error) {
	d.note(query)
	return &idRows{ids: d.ids}, nil
}

func (d *askedPool) InTx(_ context.Context, f func(database.Executor) error) error { return f(d) }

// idRows are rows of one number.
type idRows struct {
	ids []int64
	at  int
}

func (r *idRows) Next() bool { r.at++; return r.at <= len(r.ids) }
func (r *idRows) Err() error { return nil }
func (r *idRows) Close()     {}
func (r *idRows) Scan(dest ...any) error {
	*dest[0].(*int64) = r.ids[r.at-1]
	return nil
}

// TestReconciler_backsOff checks that the interval grows, because each query may read all waiting
// messages of a group.
func TestReconciler_backsOff(t *testing.T) {
	const misplaced, parked = "SELECT id FROM", "state = 6"
	looks := func(db *askedPool, span time.Duration) (rearrange, unpark int) {
		db.asked = map[string]int{misplaced: 0, parked: 0}
		synctest.Test(t, func(t *testing.T) {
			s, err := database.New(db, sqlconfig.Config{Dialect: sqlconfig.Postgres})
			require.NoError(t, err)
			r := newReconciler(groups{DB: s, holds: holds{s}}, group{id: 1})
			for end := time.Now().Add(span); time.Now().Before(end); time.Sleep(time.Second) {
				require.NoError(t, r.run(context.Background()))
			}
		})
		return db.asked[misplaced], db.asked[parked]
	}
	rearrange, unpark := looks(&askedPool{}, time.Hour)
	require.Equal(t, 7, rearrange) // after 15 s, 45 s, 105 s and so on
	require.InDelta(t, time.Hour/reconcileEvery, unpark, 2)

	rearrange, _ = looks(&askedPool{ids: []int64{1}}, time.Hour)
	require.InDelta(t, time.Hour/reconcileEvery, rearrange, 2, "where there was one there may be others")

	_, unpark = looks(&askedPool{took: time.Second}, time.Hour)
	require.LessOrEqual(t, unpark, int(time.Hour/time.Second)/reconcileShare)
}

// TestReconciler_movesMisplacedMessages checks that messages in the states of every other order are moved, and found by the index.
func TestReconciler_movesMisplacedMessages(t *testing.T) {
	ctx := t.Context()
	db, err := database.Connect(config.Source{URL: mustParse(t, "sqlite://"+t.TempDir()+"/test.db"), Config: sqlconfig.Config{Dialect: sqlconfig.SQLite}})
	require.NoError(t, err)
	defer db.Close()
	s, err := database.New(db, sqlconfig.Config{Dialect: sqlconfig.SQLite})
	require.NoError(t, err)
	require.NoError(t, s.Prepare(ctx))
	orders := []driver.Order{driver.Unordered, driver.OrderedByKey, driver.OrderedStrictly}
	for _, from := range orders {
		for _, to := range orders {
			g, err := groups{DB: s}.ensure(ctx, "shop.ledger", to)
			require.NoError(t, err)
			g.order = from
			_, err = db.Exec(ctx, s.SQL(`DELETE FROM {messages}`))
			require.NoError(t, err)
			for _, lane := range []int64{0, -7, 7} { // positive and negative hashes, and none
				_, err = db.Exec(ctx, s.SQL(`INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
					VALUES (?, 1, 0, ?, 0, 'order.paid.v1', 'm', '', '')`), g.id, lane)
				require.NoError(t, err)
			}
			_, err = db.Exec(ctx, s.SQL(`UPDATE {messages} SET `+g.readyColumns()))
			require.NoError(t, err)
			g.order = to
			_, err = groups{DB: s}.rearrange(ctx, db, g, func(f func(database.Executor) error) error { return f(db) })
			require.NoError(t, err)
			wrong, err := database.Numbers(ctx, db, s.SQL(`SELECT id FROM {messages} EXCEPT SELECT id FROM {messages} WHERE (state, pos) = (`+placeValues(g)+`)`))
			require.NoError(t, err)
			require.Empty(t, wrong, "from %s to %s", from, to)
		}
	}
	for _, order := range orders {
		for _, misplaced := range (group{order: order}).misplacedConditions() {
			plan, err := database.Collect(ctx, db, func(r database.Rows, text *string) error { var n int; return r.Scan(&n, &n, &n, text) },
				s.SQL(`EXPLAIN QUERY PLAN SELECT id FROM {messages} WHERE group_id = 1 AND `+misplaced))
			require.NoError(t, err)
			require.Contains(t, plan[0], "(group_id=? AND state=?", "%s: %s", order, misplaced)
			require.Equal(t, strings.Contains(misplaced, "pos"), strings.Contains(plan[0], "pos"), "%s: %s", order, misplaced)
		}
	}
}

// placeValues returns the state and the position of the group's ready messages as a pair of values.
func placeValues(g group) string {
	_, state, _ := strings.Cut(g.readyColumns(), "state = ")
	state, pos, _ := strings.Cut(state, ", pos = ")
	return state + ", " + pos
}
