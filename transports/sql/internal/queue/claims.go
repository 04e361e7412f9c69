package queue

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// claims claims ready messages for consumers, and writes how they were settled.
//
// The commit of a claim does not wait for the disk, so a crash of the server may undo it. Messages that were settled meanwhile are
// still settled, unless another consumer has claimed them by then.
type claims struct{ *database.DB }

// claim describes the messages that a receiver claims.
type claim struct {
	group        group
	owner        int64 // the receiver's consumer
	from         int64 // no ready message before this id is wanted
	limit        int
	bytes        int
	singleWorker bool // the receiver has one worker, who gets the messages in their order
}

// sizedID is a message that may be taken, with its bytes.
type sizedID struct{ id, size int64 }

func idsOf(all []sizedID) []int64 {
	ids := make([]int64, len(all))
	for i, m := range all {
		ids[i] = m.id
	}
	return ids
}

// sized returns messages with their sizes, sorted by id. MySQL reads their payloads for that.
func sized(ctx context.Context, d *database.DB, tx database.Executor, ids []int64) (all []sizedID, err error) {
	query, args := d.WithIDs(`SELECT id, octet_length(payload) + octet_length(headers) FROM {messages} WHERE id {in}`, ids)
	all, err = database.Collect(ctx, tx, func(r database.Rows, m *sizedID) error { return r.Scan(&m.id, &m.size) }, query, args...)
	slices.SortFunc(all, func(a, b sizedID) int { return int(a.id - b.id) })
	return all, err
}

// fitting returns the first of the messages, as many as the claim wants within its bytes, and one at least.
func (c claim) fitting(all []sizedID) (ids []int64) {
	total := int64(0)
	for _, m := range all {
		if len(ids) == c.limit || len(ids) > 0 && total >= int64(c.bytes) {
			break
		}
		ids = append(ids, m.id)
		total += m.size
	}
	return ids
}

// ready claims ready messages for their owner, in the order of their arrival.
func (cl claims) ready(ctx context.Context, c claim) (taken []record, err error) {
	switch cl.Name {
	case sqlconfig.Postgres:
		taken, err = database.Collect(ctx, cl.Relaxed, scanRecord, cl.SQL(claimPostgres),
			c.group.id, c.from, c.group.id, c.group.id, c.limit, c.owner, c.bytes)
	case sqlconfig.SQLite:
		taken, err = cl.collectTaken(ctx, cl.Relaxed, cl.SQL(claimSQLite),
			c.owner, c.group.id, c.from, c.group.id, c.limit, c.bytes)
	default:
		taken, err = cl.byLock(ctx, c)
	}
	slices.SortFunc(taken, func(a, b record) int { return int(a.id - b.id) })
	return taken, err
}

// byLock claims on databases whose UPDATE returns no rows.
func (cl claims) byLock(ctx context.Context, c claim) ([]record, error) {
	if !c.singleWorker {
		return cl.lockAndTake(ctx, c, nil, cl.SQL(claimMySQL), c.group.id, c.from, c.group.id, c.limit)
	}
	// Locked rows are skipped, for example those of a statement that acks. The single worker of a receiver waits for them, to keep
	// the order, but not for ever: the lock may be another program's.
	for patience := 50; ; patience-- {
		seen, err := database.Numbers(ctx, cl.Pool, cl.SQL(seeMySQL), c.group.id, c.from, c.group.id, c.limit)
		if err != nil || len(seen) == 0 {
			return nil, err
		}
		query, args := cl.WithIDs(lockMySQL, seen, c.group.id)
		if patience == 0 {
			seen = nil
		}
		taken, err := cl.lockAndTake(ctx, c, seen, query, args...)
		if err != nil || len(taken) > 0 || patience == 0 || !backoff.Sleep(ctx, time.Millisecond) {
			return taken, err
		}
	}
}

// lockAndTake claims the messages that a query locks. If order is given, it stops at the first one that is missing.
func (cl claims) lockAndTake(ctx context.Context, c claim, order []int64, query string, args ...any) (taken []record, err error) {
	err = cl.Relaxed.InTx(ctx, func(tx database.Executor) error {
		free, err := database.Collect(ctx, tx, func(r database.Rows, m *sizedID) error { return r.Scan(&m.id, &m.size) }, query, args...)
		if err != nil {
			return err
		}
		for i, id := range order {
			if i < len(free) && free[i].id != id {
				free = free[:i]
				break
			}
		}
		ids := c.fitting(free)
		if len(ids) == 0 {
			return nil
		}
		taken, err = cl.take(ctx, tx, ids, database.StateReady, c.owner)
		return err
	})
	return taken, err
}

// take sets the owner of messages that the transaction has locked, and reads them.
func (cl claims) take(ctx context.Context, tx database.Executor, ids []int64, to database.State, owner int64) ([]record, error) {
	query, args := cl.WithIDs(`UPDATE {messages} SET state = ?, owner = ?, attempt = {more} WHERE id {in}`, ids, to, owner)
	switch cl.Name {
	case sqlconfig.Postgres:
		return database.Collect(ctx, tx, scanRecord, query+` RETURNING `+messageColumns, args...)
	case sqlconfig.SQLite:
		return cl.collectTaken(ctx, tx, query+` RETURNING `+takenColumns, args...)
	}
	if _, err := tx.Exec(ctx, query, args...); err != nil {
		return nil, err
	}
	query, args = cl.WithIDs(`SELECT `+messageColumns+` FROM {messages} WHERE owner = ? AND id {in}`, ids, owner)
	return database.Collect(ctx, tx, scanRecord, query, args...)
}

// ack deletes messages, or keeps them as handled.
func (cl claims) ack(ctx context.Context, ex database.Executor, owner int64, ids []int64) error {
	query := `DELETE FROM {messages} WHERE owner IN (?, 0) AND state NOT IN ({poisoned}, {handled}) AND id {in}`
	if cl.Config.KeepHandled > 0 {
		query = `UPDATE {messages} SET state = {handled}, pos = {now}, owner = 0 WHERE owner IN (?, 0) AND state NOT IN ({poisoned}, {handled}) AND id {in}`
	}
	query, args := cl.WithIDs(query, ids, owner)
	_, err := ex.Exec(ctx, query, args...)
	return err
}

// rewritten has the new headers of a message.
type rewritten struct {
	id      int64
	headers []byte
}

// rewriteAtOnce and delayAtOnce are how many messages one statement changes.
const (
	rewriteAtOnce = 100
	delayAtOnce   = 500
)

// rewrite changes the headers of messages that the owner has claimed.
func (cl claims) rewrite(ctx context.Context, ex database.Executor, owner int64, all []rewritten) error {
	for some := range slices.Chunk(all, rewriteAtOnce) {
		ids, args := make([]int64, len(some)), make([]any, 0, 2*len(some)+1)
		for i, m := range some {
			ids[i] = m.id
			args = append(args, m.id, m.headers)
		}
		query, args := cl.WithIDs(`UPDATE {messages} SET headers = CASE id`+strings.Repeat(whenHeaders(cl.Name), len(some))+` END WHERE owner = ? AND id {in}`,
			ids, append(args, owner)...)
		if _, err := ex.Exec(ctx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

// put gives messages back to their group without a delay. cost is subtracted from their attempts.
func (cl claims) put(ctx context.Context, ex database.Executor, owner int64, ids []int64, cost int) error {
	query, args := cl.WithIDs(`
		UPDATE {messages} SET state = CASE WHEN state = {keyhead} THEN {keyed} ELSE state END, owner = 0, due_at = 0, attempt = attempt - ?
		WHERE owner = ? AND id {in}`, ids, cost, owner)
	_, err := ex.Exec(ctx, query, args...)
	return err
}

// delayed is a message that is given back with a delay and this number of attempts.
type delayed struct {
	id      int64
	after   time.Duration
	attempt int
}

// delay gives messages back to their group with a delay. Messages with a key keep their positions in its queue.
func (cl claims) delay(ctx context.Context, ex database.Executor, owner int64, was database.State, all []delayed) error {
	set, mine := `state = {delayed}, pos = {now} + `, `(m.owner = ? OR m.owner = 0 AND m.state = {ready} AND m.attempt <= `
	if was == database.StateKeyHead {
		set, mine = `state = {keyed}, due_at = {now} + `, `(m.owner = ? OR m.owner = 0 AND m.state = {keyed} AND m.attempt < `
	}
	for some := range slices.Chunk(all, delayAtOnce) {
		query, args := cl.delayCases(set, mine, owner, some)
		if cl.Name == sqlconfig.Postgres {
			query, args = cl.delayArrays(set, mine, owner, some)
		}
		if _, err := ex.Exec(ctx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

func (cl claims) delayArrays(set, mine string, owner int64, some []delayed) (query string, args []any) {
	var ids, waits, attempts []int64
	for _, m := range some {
		ids, waits, attempts = append(ids, m.id), append(waits, m.after.Microseconds()), append(attempts, int64(m.attempt))
	}
	return cl.SQL(`UPDATE {messages} AS m SET ` + set + `d.wait, owner = 0, attempt = d.attempt
		FROM unnest(?::bigint[], ?::bigint[], ?::bigint[]) AS d(id, wait, attempt)
		WHERE m.id = d.id AND ` + mine + `d.attempt)`), []any{ids, waits, attempts, owner}
}

// delayCases does the same for any driver. All numbers are part of the statement.
func (cl claims) delayCases(set, mine string, owner int64, some []delayed) (query string, args []any) {
	ids := make([]int64, len(some))
	var waits, attempts strings.Builder
	for i, m := range some {
		ids[i] = m.id
		fmt.Fprintf(&waits, " WHEN %d THEN %d", m.id, m.after.Microseconds())
		fmt.Fprintf(&attempts, " WHEN %d THEN %d", m.id, m.attempt)
	}
	attempt := `CASE id` + attempts.String() + ` END`
	text := cl.Complete(`UPDATE {messages} AS m SET ` + set + `CASE id` + waits.String() + ` END, owner = 0, attempt = ` + attempt +
		` WHERE ` + mine + attempt + `) AND id {in}`)
	list := strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ","), "[]")
	return strings.Replace(text, "{in}", "IN ("+list+")", 1), []any{owner}
}

// promoteAtOnce is how many messages one call of promote makes ready.
const promoteAtOnce = 2000

// promote makes due delayed messages of the group ready, at most promoteAtOnce. It returns the time until the next one is due; ok is
// false if there is none.
func (cl claims) promote(ctx context.Context, g group) (wait time.Duration, ok bool, err error) {
	type waiter struct{ id, wait int64 }
	for limit, done := 1, 0; ; limit = 500 {
		waiting, err := database.Collect(ctx, cl.Pool, func(r database.Rows, m *waiter) error { return r.Scan(&m.id, &m.wait) },
			cl.SQL(`SELECT id, CASE WHEN pos > 0 THEN pos ELSE 0 END - {now} FROM {messages} WHERE group_id = ? AND state = {delayed} ORDER BY pos LIMIT ?`), g.id, limit)
		if err != nil || len(waiting) == 0 {
			return 0, false, err
		}
		var due []int64
		for _, m := range waiting {
			if m.wait <= 0 {
				due = append(due, m.id)
			}
		}
		if len(due) > 0 {
			query, args := cl.WithIDs(`UPDATE {messages} SET `+g.readyColumns()+` WHERE state = {delayed} AND id {in}`, due)
			err := returning(ctx, cl.DB, g, func(ex database.Executor) error {
				_, err := ex.Exec(ctx, query, args...)
				return err
			})
			if err != nil {
				return 0, false, err
			}
		}
		if done += len(due); done >= promoteAtOnce {
			return 0, true, nil
		}
		if last := waiting[len(waiting)-1]; last.wait > 0 {
			return time.Duration(last.wait) * time.Microsecond, true, nil
		}
	}
}

// owned returns the messages that a consumer has claimed.
func (cl claims) owned(ctx context.Context, g group, owner int64) ([]int64, error) {
	return database.Numbers(ctx, cl.Pool, cl.SQL(`SELECT id FROM {messages} WHERE group_id = ? AND state IN ({ready}, {keyhead}) AND owner = ?`), g.id, owner)
}
