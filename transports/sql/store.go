package sql

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// store is the tables, as operations. It retries nothing but where it says so.
type store struct {
	*statements
	db      database
	quick   database // db, where a commit need not wait for the disk
	link    *link
	arrays  bool  // an insert may pass its messages as arrays
	born    int64 // when the tables were made: no others share it
	file    *sqliteFile
	tellsTx bool // the server says whether a transaction is open, as MariaDB does
}

// The states of a message in its group. Together with pos and id they are the one index by which
// messages are found: what is ready in the order of arrival, what waits by the time it is due, what
// is poisoned by the time of it, what is ordered by its key.
const (
	stateReady    = 0 // pos is 0; taken when owner is a live consumer
	stateDelayed  = 1 // pos is when it is due
	statePoisoned = 2 // pos is when it was poisoned
	stateHandled  = 3 // pos is when it was handled; only where handled messages are kept
	stateLane     = 4 // waits behind its key; pos is the key's hash, 0 in a strictly ordered group
	stateLaneHead = 5 // taken from its lane; nothing else of the lane is, as long as its owner lives
	stateParked   = 6 // waits behind a poisoned one of its lane, out of the claims' way; pos is its lane's
)

// record is a message as it is read.
type record struct {
	id      int64
	state   int
	attempt int
	firstAt int64
	topic   string
	uuid    string
	headers []byte
	payload []byte
}

const messageColumns = "id, state, attempt, first_at, topic, uuid, headers, payload"

func scanRecord(r rows, m *record) error {
	return r.Scan(&m.id, &m.state, &m.attempt, &m.firstAt, &m.topic, &m.uuid, &m.headers, &m.payload)
}

// claim is a feed's wish for messages.
type claim struct {
	group group
	owner int64 // the feed's consumer
	from  int64 // no ready message before this id is wanted
	limit int
	bytes int
	runs  bool // for lanes: what stands behind the first of a lane may be taken with it
	alone bool // the feed has one worker, who gets the messages in their order

	walk    laneWalk // for lanes: where the last walk ended
	lanes   []int64  // for lanes: those that may have something
	due     []int64  // for lanes: messages that may be due
	orphans bool     // for lanes: what dead consumers had taken is to be put back first
	busy    bool     // for lanes: the last claim took something
	hints   bool     // for lanes: the last walk was just now, so that hints may do if they lead to enough
	brief   bool     // for lanes: the walk is to be short
	fresh   int64    // for lanes: rows with ids beyond this one are new; 0 to leave them to the walk
}

// claimReady takes ready messages for their owner, in the order of their arrival.
func (s *store) claimReady(ctx context.Context, c claim) (taken []record, err error) {
	switch s.name {
	case Postgres:
		taken, err = collect(ctx, s.quick, scanRecord, s.sql(claimPostgres),
			c.group.id, c.from, c.group.id, c.group.id, c.limit, c.owner, c.bytes)
	case SQLite:
		taken, err = collect(ctx, s.quick, scanRecord, s.sql(claimSQLite),
			c.owner, c.group.id, c.from, c.group.id, c.limit, c.bytes)
	default:
		taken, err = s.claimByLock(ctx, c)
	}
	slices.SortFunc(taken, func(a, b record) int { return int(a.id - b.id) })
	return taken, err
}

// claimByLock is the claim where an UPDATE returns no rows.
func (s *store) claimByLock(ctx context.Context, c claim) ([]record, error) {
	if !c.alone {
		return s.lockAndTake(ctx, c, nil, s.sql(claimMySQL), c.group.id, c.from, c.group.id, c.limit)
	}
	// What is locked, by the statement that acks, say, is skipped; the one worker of a feed had better
	// wait for it. Not for ever: it may be somebody else's lock.
	for patience := 50; ; patience-- {
		seen, err := numbers(ctx, s.db, s.sql(seeMySQL), c.group.id, c.from, c.group.id, c.limit)
		if err != nil || len(seen) == 0 {
			return nil, err
		}
		query, args := s.withIDs(lockMySQL, seen, c.group.id)
		if patience == 0 {
			seen = nil
		}
		taken, err := s.lockAndTake(ctx, c, seen, query, args...)
		if err != nil || len(taken) > 0 || patience == 0 || !sleep(ctx, time.Millisecond) {
			return taken, err
		}
	}
}

// lockAndTake takes the messages that a query locks; where order is given, only as far as none of it
// is missing.
func (s *store) lockAndTake(ctx context.Context, c claim, order []int64, query string, args ...any) (taken []record, err error) {
	type sized struct{ id, size int64 }
	err = s.quick.inTx(ctx, func(tx executor) error {
		free, err := collect(ctx, tx, func(r rows, m *sized) error { return r.Scan(&m.id, &m.size) }, query, args...)
		if err != nil {
			return err
		}
		var ids []int64
		total := int64(0)
		for i, m := range free {
			if total >= int64(c.bytes) || order != nil && m.id != order[i] {
				break
			}
			ids = append(ids, m.id)
			total += m.size
		}
		if len(ids) == 0 {
			return nil
		}
		taken, err = s.take(ctx, tx, ids, stateReady, c.owner)
		return err
	})
	return taken, err
}

// take makes messages the owner's that the transaction has locked, and reads them.
func (s *store) take(ctx context.Context, tx executor, ids []int64, state int, owner int64) ([]record, error) {
	if s.name != MySQL {
		query, args := s.withIDs(`UPDATE {messages} SET state = ?, owner = ?, attempt = attempt + 1 WHERE id {in}`, ids, state, owner)
		return collect(ctx, tx, scanRecord, query+` RETURNING `+messageColumns, args...)
	}
	query, args := s.withIDs(`UPDATE {messages} SET state = ?, owner = ?, attempt = attempt + 1 WHERE id {in}`, ids, state, owner)
	if _, err := tx.exec(ctx, query, args...); err != nil {
		return nil, err
	}
	query, args = s.withIDs(`SELECT `+messageColumns+` FROM {messages} WHERE owner = ? AND id {in}`, ids, owner)
	return collect(ctx, tx, scanRecord, query, args...)
}

// A claim is not waited for to reach the disk, so a crash of the server may undo it. What was settled
// meanwhile is settled all the same, unless somebody else has the message by now.

// ack is the end of messages.
func (s *store) ack(ctx context.Context, ex executor, owner int64, ids []int64) error {
	query := `DELETE FROM {messages} WHERE owner IN (?, 0) AND state NOT IN (2, 3) AND id {in}`
	if s.cfg.KeepHandled > 0 {
		query = `UPDATE {messages} SET state = 3, pos = {now}, owner = 0 WHERE owner IN (?, 0) AND state NOT IN (2, 3) AND id {in}`
	}
	query, args := s.withIDs(query, ids, owner)
	_, err := ex.exec(ctx, query, args...)
	return err
}

// rewritten is a message with new headers.
type rewritten struct {
	id      int64
	headers []byte
}

// rewriteAtOnce and delayAtOnce are how many messages one statement changes.
const (
	rewriteAtOnce = 100
	delayAtOnce   = 500
)

// rewrite changes the headers of messages of the owner's.
func (s *store) rewrite(ctx context.Context, ex executor, owner int64, all []rewritten) error {
	for some := range slices.Chunk(all, rewriteAtOnce) {
		ids, args := make([]int64, len(some)), make([]any, 0, 2*len(some)+1)
		for i, m := range some {
			ids[i] = m.id
			args = append(args, m.id, m.headers)
		}
		query, args := s.withIDs(`UPDATE {messages} SET headers = CASE id`+strings.Repeat(s.whenHeaders, len(some))+` END WHERE owner = ? AND id {in}`,
			ids, append(args, owner)...)
		if _, err := ex.exec(ctx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

// put gives messages back to their group, at once. Their attempt counts, or not.
func (s *store) put(ctx context.Context, ex executor, owner int64, ids []int64, cost int) error {
	query, args := s.withIDs(`
		UPDATE {messages} SET state = CASE WHEN state = 5 THEN 4 ELSE state END, owner = 0, due_at = 0, attempt = attempt - ?
		WHERE owner = ? AND id {in}`, ids, cost, owner)
	_, err := ex.exec(ctx, query, args...)
	return err
}

// delayed is a message that is given back for later, with this many attempts counted.
type delayed struct {
	id      int64
	after   time.Duration
	attempt int
}

// delay gives messages back to their group for later. Those that have a lane keep their places in it.
func (s *store) delay(ctx context.Context, ex executor, owner int64, state int, all []delayed) error {
	set, mine := `state = 1, pos = {now} + `, `(owner = ? OR owner = 0 AND state = 0 AND attempt <= `
	if state == stateLaneHead {
		set, mine = `state = 4, due_at = {now} + `, `(owner = ? OR owner = 0 AND state = 4 AND attempt < `
	}
	for some := range slices.Chunk(all, delayAtOnce) {
		query, args := s.delayCases(set, mine, owner, some)
		if s.name == Postgres {
			query, args = s.delayArrays(set, mine, owner, some)
		}
		if _, err := ex.exec(ctx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) delayArrays(set, mine string, owner int64, some []delayed) (query string, args []any) {
	var ids, waits, attempts []int64
	for _, m := range some {
		ids, waits, attempts = append(ids, m.id), append(waits, m.after.Microseconds()), append(attempts, int64(m.attempt))
	}
	return s.sql(`UPDATE {messages} AS m SET ` + set + `d.wait, owner = 0, attempt = d.attempt
		FROM unnest(?::bigint[], ?::bigint[], ?::bigint[]) AS d(id, wait, attempt)
		WHERE m.id = d.id AND ` + strings.NewReplacer("owner", "m.owner", "state", "m.state", "attempt", "m.attempt").Replace(mine) + `d.attempt)`),
		[]any{ids, waits, attempts, owner}
}

// delayCases is the same for any driver. All numbers are part of the statement.
func (s *store) delayCases(set, mine string, owner int64, some []delayed) (query string, args []any) {
	ids := make([]int64, len(some))
	var waits, attempts strings.Builder
	for i, m := range some {
		ids[i] = m.id
		fmt.Fprintf(&waits, " WHEN %d THEN %d", m.id, m.after.Microseconds())
		fmt.Fprintf(&attempts, " WHEN %d THEN %d", m.id, m.attempt)
	}
	attempt := `CASE id` + attempts.String() + ` END`
	text := s.complete(`UPDATE {messages} SET ` + set + `CASE id` + waits.String() + ` END, owner = 0, attempt = ` + attempt +
		` WHERE ` + mine + attempt + `) AND id {in}`)
	list := strings.Trim(strings.ReplaceAll(fmt.Sprint(ids), " ", ","), "[]")
	return strings.Replace(text, "{in}", "IN ("+list+")", 1), []any{owner}
}

// promoteAtOnce is how many messages are made ready before some are handed out.
const promoteAtOnce = 2000

// promote makes delayed messages of the group ready that are due, some of them if there are many. It returns how
// long it is until the next; ok is false where there is none.
func (s *store) promote(ctx context.Context, g group) (wait time.Duration, ok bool, err error) {
	type waiter struct{ id, wait int64 }
	for limit, done := 1, 0; ; limit = 500 {
		waiting, err := collect(ctx, s.db, func(r rows, m *waiter) error { return r.Scan(&m.id, &m.wait) },
			s.sql(`SELECT id, pos - {now} FROM {messages} WHERE group_id = ? AND state = 1 ORDER BY pos LIMIT ?`), g.id, limit)
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
			query, args := s.withIDs(`UPDATE {messages} SET `+g.place()+` WHERE state = 1 AND id {in}`, due)
			if _, err := s.db.exec(ctx, query, args...); err != nil {
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

// owned are the messages that a consumer has taken.
func (s *store) owned(ctx context.Context, g group, owner int64) ([]int64, error) {
	return numbers(ctx, s.db, s.sql(`SELECT id FROM {messages} WHERE group_id = ? AND state IN (0, 5) AND owner = ?`), g.id, owner)
}

// newest changes when something is inserted, and sometimes before that is committed.
func (s *store) newest(ctx context.Context) (int64, error) {
	query := `SELECT max(id) FROM {messages}`
	if s.name == Postgres {
		query = `SELECT last_value FROM {messages_id_seq}`
	}
	n, _, err := number(ctx, s.db, s.sql(query))
	return n, err
}
