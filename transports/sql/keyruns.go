package sql

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// keyRuns takes messages of a key queue along with its head. A relay needs no answer for one message of a key before
// it takes the next: it publishes them in their order. While any of a run is out, or back and waiting, its queue
// stands still like any other's.
type keyRuns struct{ *database }

// runsFrom is how many key queues one claim lengthens. Where more are free, their heads alone make a batch.
const runsFrom = 64

// Each key queue is read by the index, in its order.
const (
	runPostgres = `(SELECT id, pos, CASE WHEN due_at > 0 THEN due_at ELSE 0 END - {now} AS wait FROM {messages}
	WHERE (group_id, state, pos, id) >= (?::integer, {keyed}::smallint, ?::bigint, 0::bigint)
	AND (group_id, state, pos, id) <= (?::integer, {keyed}::smallint, ?::bigint, 9223372036854775807)
	ORDER BY group_id, state, pos, id LIMIT %d)`
	runMySQL = `(SELECT id, pos, CASE WHEN due_at > 0 THEN due_at ELSE 0 END - {now} AS wait FROM {messages} FORCE INDEX ({queue})
	WHERE group_id = ? AND state = {keyed} AND pos = ? ORDER BY id LIMIT %d)`
	runSQLite = `SELECT * FROM (SELECT id, pos, CASE WHEN due_at > 0 THEN due_at ELSE 0 END - {now} AS wait FROM {messages} INDEXED BY {queue}
	WHERE group_id = ? AND state = {keyed} AND pos = ? ORDER BY id LIMIT %d)`
)

// extend returns the messages of the key queues with these free heads, as many of each as there is room for, and at
// least one. None is taken that has one in front of it that stays.
func (k keyRuns) extend(ctx context.Context, tx executor, c claim, heads []int64) (ids []int64, err error) {
	ids = heads
	if each := c.limit / len(heads); len(heads) <= runsFrom && each > 1 {
		if ids, err = k.lengthen(ctx, tx, c.group, heads, each); err != nil {
			return nil, err
		}
	}
	slices.Sort(ids)
	type sized struct{ id, bytes int64 }
	query, args := k.withIDs(`SELECT id, octet_length(payload) + octet_length(headers) FROM {messages} WHERE id {in}`, ids)
	sizes, err := collect(ctx, tx, func(r rows, m *sized) error { return r.Scan(&m.id, &m.bytes) }, query, args...)
	if err != nil {
		return nil, err
	}
	bytes := make(map[int64]int64, len(sizes))
	for _, m := range sizes {
		bytes[m.id] = m.bytes
	}
	n, total := 0, int64(0)
	for n < len(ids) && (n == 0 || total < int64(c.bytes)) {
		total += bytes[ids[n]]
		n++
	}
	return ids[:n], nil // in the order of arrival, so that of each key queue what is left out is behind
}

// lengthen finds what stands behind the heads, up to a number of messages in each key queue.
func (k keyRuns) lengthen(ctx context.Context, tx executor, g group, heads []int64, each int) (ids []int64, err error) {
	query, args := k.withIDs(`SELECT pos FROM {messages} WHERE id {in}`, heads)
	queues, err := numbers(ctx, tx, query, args...)
	if err != nil {
		return nil, err
	}
	query, args = k.query(g, queues, each)
	type row struct{ id, pos, wait int64 }
	found, err := collect(ctx, tx, func(r rows, m *row) error { return r.Scan(&m.id, &m.pos, &m.wait) }, query, args...)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b row) int { return int(a.id - b.id) })
	held := make(map[int64]bool)
	for _, m := range found {
		if m.wait > 0 {
			held[m.pos] = true
		}
		if !held[m.pos] {
			ids = append(ids, m.id)
		}
	}
	return ids, nil
}

func (k keyRuns) query(g group, queues []int64, each int) (query string, args []any) {
	one := runMySQL
	switch k.name {
	case Postgres:
		one = runPostgres
	case SQLite:
		one = runSQLite
	case MySQL:
	}
	one = fmt.Sprintf(one, each)
	for _, queue := range queues {
		args = append(args, g.id, queue)
		if k.name == Postgres {
			args = append(args, g.id, queue)
		}
	}
	return k.complete(strings.Join(slices.Repeat([]string{one}, len(queues)), " UNION ALL ")), args
}
