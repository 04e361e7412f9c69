package sql

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/transports/internal/backoff"
)

// claims claims ready messages for consumers, and writes how they were settled.
//
// The commit of a claim does not wait for the disk, so a crash of the server may undo it. Messages that were settled meanwhile are
// still settled, unless another consumer has claimed them by then.
type claims struct{ *database }

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
func (d *database) sized(ctx context.Context, tx executor, ids []int64) (all []sizedID, err error) {
	query, args := d.withIDs(`SELECT id, octet_length(payload) + octet_length(headers) FROM {messages} WHERE id {in}`, ids)
	all, err = collect(ctx, tx, func(r rows, m *sizedID) error { return r.Scan(&m.id, &m.size) }, query, args...)
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
	switch cl.name {
	case Postgres:
		taken, err = collect(ctx, cl.relaxed, scanRecord, cl.sql(claimPostgres),
			c.group.id, c.from, c.group.id, c.group.id, c.limit, c.owner, c.bytes)
	case SQLite:
		taken, err = cl.collectTaken(ctx, cl.relaxed, cl.sql(claimSQLite),
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
		return cl.lockAndTake(ctx, c, nil, cl.sql(claimMySQL), c.group.id, c.from, c.group.id, c.limit)
	}
	// Locked rows are skipped, for example those of a statement that acks. The single worker of a receiver waits for them, to keep
	// the order, but not for ever: the lock may be another program's.
	for patience := 50; ; patience-- {
		seen, err := numbers(ctx, cl.pool, cl.sql(seeMySQL), c.group.id, c.from, c.group.id, c.limit)
		if err != nil || len(seen) == 0 {
			return nil, err
		}
		query, args := cl.withIDs(lockMySQL, seen, c.group.id)
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
	err = cl.relaxed.inTx(ctx, func(tx executor) error {
		free, err := collect(ctx, tx, func(r rows, m *sizedID) error { return r.Scan(&m.id, &m.size) }, query, args...)
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
		taken, err = cl.take(ctx, tx, ids, stateReady, c.owner)
		return err
	})
	return taken, err
}

// take sets the owner of messages that the transaction has locked, and reads them.
func (cl claims) take(ctx context.Context, tx executor, ids []int64, to state, owner int64) ([]record, error) {
	query, args := cl.withIDs(`UPDATE {messages} SET state = ?, owner = ?, attempt = {more} WHERE id {in}`, ids, to, owner)
	switch cl.name {
	case Postgres:
		return collect(ctx, tx, scanRecord, query+` RETURNING `+messageColumns, args...)
	case SQLite:
		return cl.collectTaken(ctx, tx, query+` RETURNING `+takenColumns, args...)
	}
	if _, err := tx.exec(ctx, query, args...); err != nil {
		return nil, err
	}
	query, args = cl.withIDs(`SELECT `+messageColumns+` FROM {messages} WHERE owner = ? AND id {in}`, ids, owner)
	return collect(ctx, tx, scanRecord, query, args...)
}

// ack deletes messages, or keeps them as handled.
func (cl claims) ack(ctx context.Context, ex executor, owner int64, ids []int64) error {
	query := `DELETE FROM {messages} WHERE owner IN (?, 0) AND state NOT IN ({poisoned}, {handled}) AND id {in}`
	if cl.cfg.KeepHandled > 0 {
		query = `UPDATE {messages} SET state = {handled}, pos = {now}, owner = 0 WHERE owner IN (?, 0) AND state NOT IN ({poisoned}, {handled}) AND id {in}`
	}
	query, args := cl.withIDs(query, ids, owner)
	_, err := ex.exec(ctx, query, args...)
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
func (cl claims) rewrite(ctx context.Context, ex executor, owner int64, all []rewritten) error {
	for some := range slices.Chunk(all, rewriteAtOnce) {
		ids, args := make([]int64, len(some)), make([]any, 0, 2*len(some)+1)
		for i, m := range some {
			ids[i] = m.id
			args = append(args, m.id, m.headers)
		}
		query, args := cl.withIDs(`UPDATE {messages} SET headers = CASE id`+strings.Repeat(cl.whenHeaders, len(some))+` END WHERE owner = ? AND id {in}`,
			ids, append(args, owner)...)
		if _, err := ex.exec(ctx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

// put gives messages back to their group without a delay. cost is subtracted from their attempts.
func (cl claims) put(ctx context.Context, ex executor, owner int64, ids []int64, cost int) error {
	query, args := cl.withIDs(`
		UPDATE {messages} SET state = CASE WHEN state = {keyhead} THEN {keyed} ELSE state END, owner = 0, due_at = 0, attempt = attempt - ?
		WHERE owner = ? AND id {in}`, ids, cost, owner)
	_, err := ex.exec(ctx, query, args...)
	return err
}

// delayed is a message that is given back with a delay and this number of attempts.
type delayed struct {
	id      int64
	after   time.Duration
	attempt int
}

// delay gives messages back to their group with a delay. Messages with a key keep their positions in its queue.
func (cl claims) delay(ctx context.Context, ex executor, owner int64, was state, all []delayed) error {
	set, mine := `state = {delayed}, pos = {now} + `, `(m.owner = ? OR m.owner = 0 AND m.state = {ready} AND m.attempt <= `
	if was == stateKeyHead {
		set, mine = `state = {keyed}, due_at = {now} + `, `(m.owner = ? OR m.owner = 0 AND m.state = {keyed} AND m.attempt < `
	}
	for some := range slices.Chunk(all, delayAtOnce) {
		query, args := cl.delayCases(set, mine, owner, some)
		if cl.name == Postgres {
			query, args = cl.delayArrays(set, mine, owner, some)
		}
		if _, err := ex.exec(ctx, query, args...); err != nil {
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
	return cl.sql(`UPDATE {messages} AS m SET ` + set + `d.wait, owner = 0, attempt = d.attempt
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
	text := cl.complete(`UPDATE {messages} AS m SET ` + set + `CASE id` + waits.String() + ` END, owner = 0, attempt = ` + attempt +
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
		waiting, err := collect(ctx, cl.pool, func(r rows, m *waiter) error { return r.Scan(&m.id, &m.wait) },
			cl.sql(`SELECT id, CASE WHEN pos > 0 THEN pos ELSE 0 END - {now} FROM {messages} WHERE group_id = ? AND state = {delayed} ORDER BY pos LIMIT ?`), g.id, limit)
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
			query, args := cl.withIDs(`UPDATE {messages} SET `+g.readyColumns()+` WHERE state = {delayed} AND id {in}`, due)
			err := cl.returning(ctx, g, func(ex executor) error {
				_, err := ex.exec(ctx, query, args...)
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
	return numbers(ctx, cl.pool, cl.sql(`SELECT id FROM {messages} WHERE group_id = ? AND state IN ({ready}, {keyhead}) AND owner = ?`), g.id, owner)
}
