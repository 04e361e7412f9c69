package queue

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// keyRuns claims several messages of a key queue at once, a run, for relays. A relay publishes the messages of a key in
// order, so it can claim the next one before the previous one is settled. No message behind a run can be claimed until
// all of the run are settled for good.
type keyRuns struct{ *database.DB }

// runsFrom is the number of free key queues up to which runs are claimed. If there are more, their heads make a batch.
const runsFrom = 64

// Each key queue is read by the index, in order.
const (
	runPostgres = `(SELECT id, pos, CASE WHEN due_at > 0 THEN due_at ELSE 0 END - {now} AS wait FROM {messages}
	WHERE (group_id, state, pos, id) >= (?::integer, {keyed}::smallint, ?::bigint, 0::bigint)
	AND (group_id, state, pos, id) <= (?::integer, {keyed}::smallint, ?::bigint, 9223372036854775807)
	ORDER BY group_id, state, pos, id LIMIT %d)`
	runMySQL = `(SELECT id, pos, CASE WHEN due_at > 0 THEN due_at ELSE 0 END - {now} AS wait FROM {messages} {force}
	WHERE group_id = ? AND state = {keyed} AND pos = ? ORDER BY id LIMIT %d)`
	runSQLite = `SELECT * FROM (SELECT id, pos, CASE WHEN due_at > 0 THEN due_at ELSE 0 END - {now} AS wait FROM {messages} INDEXED BY {queue}
	WHERE group_id = ? AND state = {keyed} AND pos = ? ORDER BY id LIMIT %d)`
)

// extend returns the messages to claim from the key queues with these free heads: as many of each as there is room for, and at
// least one message. It returns no message without those in front of it.
func (k keyRuns) extend(ctx context.Context, tx database.Executor, c claim, heads []int64) (ids []int64, err error) {
	ids = heads
	if each := c.limit / len(heads); len(heads) <= runsFrom && each > 1 {
		if ids, err = k.lengthen(ctx, tx, c.group, heads, each); err != nil {
			return nil, err
		}
	}
	sized, err := sized(ctx, k.DB, tx, ids)
	if err != nil {
		return nil, err
	}
	c.limit = len(sized)
	return c.fitting(sized), nil // sorted by id, so what does not fit is behind what does
}

// lengthen returns the heads and the messages behind them, up to a number of messages in each key queue and up to the first one that
// waits for its redelivery.
func (k keyRuns) lengthen(ctx context.Context, tx database.Executor, g group, heads []int64, each int) (ids []int64, err error) {
	query, args := k.WithIDs(`SELECT pos FROM {messages} WHERE id {in}`, heads)
	queues, err := database.Numbers(ctx, tx, query, args...)
	if err != nil {
		return nil, err
	}
	query, args = k.query(g, queues, each)
	type row struct{ id, pos, wait int64 }
	found, err := database.Collect(ctx, tx, func(r database.Rows, m *row) error { return r.Scan(&m.id, &m.pos, &m.wait) }, query, args...)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b row) int { return int(a.id - b.id) })
	heldBack := make(map[int64]bool)
	for _, m := range found {
		if m.wait > 0 {
			heldBack[m.pos] = true
		}
		if !heldBack[m.pos] {
			ids = append(ids, m.id)
		}
	}
	return ids, nil
}

func (k keyRuns) query(g group, queues []int64, each int) (query string, args []any) {
	one := runMySQL
	switch k.Name {
	case sqlconfig.Postgres:
		one = runPostgres
	case sqlconfig.SQLite:
		one = runSQLite
	case sqlconfig.MySQL:
	}
	one = fmt.Sprintf(one, each)
	for _, queue := range queues {
		args = append(args, g.id, queue)
		if k.Name == sqlconfig.Postgres {
			args = append(args, g.id, queue)
		}
	}
	return k.Complete(strings.Join(slices.Repeat([]string{one}, len(queues)), " UNION ALL ")), args
}
