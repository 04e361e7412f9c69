package sql

import (
	"context"
	stdsql "database/sql"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// walkLimit is how many key queues one claim looks at, at most, before it returns less than it was asked for.
	// Key queues that wait are walked over, so it is generous.
	walkLimit = 512
	// walkAhead is how many key queues it looks at beyond those it needs. Most key queues are free.
	walkAhead = 32
	// freshLimit is how many new rows one claim reads.
	freshLimit = 1000
)

// keyQueues takes messages from the queues of their keys. Only the first message of a queue can be taken, and none
// while another of the queue is out. A claim locks the group.
type keyQueues struct {
	*database
	claims claims
	groups groups
	holds  holds
	runs   keyRuns
}

// keyClaim is a feed's wish for messages that are ordered by their keys.
type keyClaim struct {
	claim
	runs    bool    // what stands behind the first of a queue may be taken with it
	walk    keyWalk // where the last walk ended
	queues  []int64 // those that may have something
	due     []int64 // messages that may be due
	orphans bool    // what dead consumers had taken is to be put back first
	busy    bool    // the last claim took something
	hints   bool    // the last walk was just now, so that hints may do if they lead to enough
	brief   bool    // the walk is to be short
	fresh   int64   // rows with ids beyond this one are new; 0 to leave them to the walk
}

// keysFound is what a claim from the key queues of a group found.
type keysFound struct {
	taken   []record
	walk    keyWalk       // where the next claim goes on, so that every key gets its turn
	round   bool          // the walk has come round: there is no more that can be taken
	crowded bool          // so many key queues wait that the walk over them took all it may
	newest  int64         // the largest id among the new rows that were read
	more    bool          // there are more new rows
	waiting []waitingHead // heads that are not due yet
	left    bool          // there was more to take than was wanted
	walked  bool          // not only hints were followed
}

// claim takes the first message of keys of which none is taken. One claim runs at a time for a
// group: otherwise one that sees a late commit could take a second message of a key.
func (k keyQueues) claim(ctx context.Context, c keyClaim) (found keysFound, err error) {
	found.walk = c.walk
	if !c.busy { // spares idle groups the transaction
		if busy, err := k.any(ctx, c.group); err != nil || !busy {
			found.walk, found.round = newKeyWalk(), true
			return found, err
		}
	}
	err = k.locked(ctx, c.group, func(tx lockedGroup) error {
		if c.orphans {
			if err := k.orphans(ctx, tx); err != nil {
				return err
			}
		}
		found = keysFound{walk: c.walk}
		heads, err := k.hinted(ctx, tx, c, &found)
		if err != nil {
			return err
		}
		free, walked, err := k.walk(ctx, tx, c, heads, &found)
		if err != nil || len(free) == 0 {
			return err
		}
		slices.Sort(free)
		if len(free) > c.limit {
			if slices.ContainsFunc(free[c.limit:], func(id int64) bool { return walked[id] }) {
				found.walk, found.round = c.walk, false // the walk is to come here again
			}
			free, found.left = free[:c.limit], true
		} else if c.runs {
			if free, err = k.runs.extend(ctx, tx, c.claim, free); err != nil {
				return err
			}
		}
		found.taken, err = k.claims.take(ctx, tx, free, stateKeyHead, c.owner)
		return err
	})
	slices.SortFunc(found.taken, func(a, b record) int { return int(a.id - b.id) })
	return found, err
}

// locked does what [groups.locked] does for a claim, whose commit need not wait for the disk: a crash of the server
// that undoes it is a redelivery.
func (k keyQueues) locked(ctx context.Context, g group, f func(lockedGroup) error) error {
	if k.name != Postgres {
		return k.groups.locked(ctx, k.relaxed, g, f)
	}
	return k.relaxed.inTx(ctx, func(tx executor) error {
		_, _, err := number(ctx, tx, k.sql(`SELECT group_id FROM {turns} WHERE group_id = ?
			AND set_config('idle_in_transaction_session_timeout', '10s', true) IS NOT NULL
			AND set_config('synchronous_commit', 'off', true) IS NOT NULL FOR UPDATE`), g.id)
		if err != nil {
			return err
		}
		return f(lockedGroup{tx, g})
	})
}

// hinted returns the messages that the hints lead to.
func (k keyQueues) hinted(ctx context.Context, tx executor, c keyClaim, found *keysFound) (heads []int64, err error) {
	heads = slices.Clone(c.due)
	if len(c.queues) > 0 {
		first, err := k.headsOf(ctx, tx, c.group, c.queues)
		if err != nil {
			return nil, err
		}
		heads = append(heads, first...)
	}
	if c.fresh > 0 {
		fresh, err := k.freshHeads(ctx, tx, c, found)
		if err != nil {
			return nil, err
		}
		heads = append(heads, fresh...)
	}
	return heads, nil
}

// headsOf returns the first message of each of the key queues.
func (k keyQueues) headsOf(ctx context.Context, tx executor, g group, of []int64) ([]int64, error) {
	const first = `SELECT (SELECT m.id FROM {messages} m {hint} WHERE m.group_id = ? AND m.state = {keyed} AND m.pos = l.pos ORDER BY m.pos, m.id LIMIT 1) FROM `
	var query string
	args := []any{g.id}
	if k.name == Postgres {
		query = k.sql(strings.Replace(first, "{hint}", "", 1) + `unnest(?::bigint[]) AS l(pos)`)
		args = append(args, of)
	} else {
		selects := make([]string, len(of))
		for i, queue := range of {
			selects[i] = "SELECT " + strconv.FormatInt(queue, 10) + " AS pos"
		}
		hint := ""
		if k.name == MySQL {
			hint = "FORCE INDEX ({queue})"
		}
		query = k.complete(strings.Replace(first, "{hint}", hint, 1) + `(` + strings.Join(selects, " UNION ALL ") + `) l`)
	}
	found, err := collect(ctx, tx, func(r rows, id *stdsql.NullInt64) error { return r.Scan(id) }, query, args...)
	var ids []int64
	for _, id := range found {
		if id.Valid {
			ids = append(ids, id.Int64)
		}
	}
	return ids, err
}

// freshHeads returns messages of the group's key queues with ids beyond c.fresh. It reads the rows of all groups in
// their order: the sums keep the planner from the index that has all key queues of the group.
func (k keyQueues) freshHeads(ctx context.Context, tx executor, c keyClaim, found *keysFound) (ids []int64, err error) {
	type row struct {
		id  int64
		own int
	}
	all, err := collect(ctx, tx, func(r rows, x *row) error { return r.Scan(&x.id, &x.own) }, k.sql(`
		SELECT id, CASE WHEN group_id + 0 = ? AND state + 0 = {keyed} THEN 1 ELSE 0 END FROM {messages} WHERE id > ? ORDER BY id LIMIT ?`),
		c.group.id, c.fresh, freshLimit)
	for _, x := range all {
		found.newest = x.id
		if x.own == 1 {
			ids = append(ids, x.id)
		}
	}
	found.more = len(all) == freshLimit
	return ids, err
}

// any reports whether the group has messages in key queues.
func (k keyQueues) any(ctx context.Context, g group) (bool, error) {
	_, ok, err := number(ctx, k.pool, k.sql(`SELECT id FROM {messages} WHERE group_id = ? AND state IN ({keyed}, {keyhead}) LIMIT 1`), g.id)
	return ok, err
}

// orphans puts back into their key queues what consumers had taken that are no more. Their attempt has
// been counted.
func (k keyQueues) orphans(ctx context.Context, tx lockedGroup) error {
	_, err := tx.exec(ctx, k.sql(`UPDATE {messages} SET state = {keyed}, owner = 0 WHERE group_id = ? AND state = {keyhead} AND owner NOT IN ({live})`), tx.group.id, tx.group.id)
	return err
}

// walk returns which of the heads can be taken, and goes on over the key queues until it has found as many as the
// claim needs, has come round, or has looked at as many as it may. It returns which messages it came by.
func (k keyQueues) walk(ctx context.Context, tx lockedGroup, c keyClaim, heads []int64, found *keysFound) (free []int64, walked map[int64]bool, err error) {
	limit := max(walkLimit, c.limit)
	if c.brief {
		limit = c.limit + walkAhead
	}
	walked, seen := make(map[int64]bool), make(map[int64]bool)
	for looked, step := 0, c.limit+walkAhead; ; step *= 4 {
		// Where the hints alone may do, the walk can wait a little.
		if looked > 0 || !c.hints || len(heads) < c.limit {
			step = min(step, limit-looked, walkLimit)
			some, last, err := k.heads(ctx, tx, c.group, found.walk.after, step)
			if err != nil {
				return nil, nil, err
			}
			looked += max(len(some), 1)
			found.round = found.walk.step(last, len(some) < step)
			for _, id := range some {
				walked[id] = true
			}
			heads = append(heads, some...)
		}
		heads = slices.DeleteFunc(heads, func(id int64) bool {
			was := seen[id]
			seen[id] = true
			return was
		})
		if len(heads) > 0 {
			more, err := k.freeHeads(ctx, tx, heads, found)
			if err != nil {
				return nil, nil, err
			}
			free = append(free, more...)
		}
		heads, c.hints = nil, false
		if len(free) >= c.limit || found.round || looked >= limit {
			found.walked = looked > 0
			found.crowded = len(free) < c.limit && !found.round
			return free, walked, nil
		}
	}
}

func (k keyQueues) heads(ctx context.Context, tx executor, g group, after int64, limit int) (ids []int64, last int64, err error) {
	scan := func(r rows, h *head) error { return r.Scan(&h.pos, &h.id) }
	var found []head
	switch k.name {
	case Postgres:
		found, err = collect(ctx, tx, scan, k.sql(headsPostgres), g.id, after, g.id, g.id, limit)
	case SQLite:
		found, err = collect(ctx, tx, scan, k.sql(headsSQLite), g.id, after, g.id, g.id, limit)
	default:
		found, err = k.pagedHeads(ctx, tx, g, after, limit)
	}
	last = noKeyQueue
	for _, h := range found {
		ids = append(ids, h.id)
		last = h.pos
	}
	return ids, last, err
}

// head is the first message of a key queue.
type head struct{ pos, id int64 }

// pagedHeads does what heads does if the rows of a key queue can't be skipped within a statement.
func (k keyQueues) pagedHeads(ctx context.Context, tx executor, g group, after int64, limit int) (found []head, err error) {
	for page := limit + walkAhead; len(found) < limit; {
		rows, err := collect(ctx, tx, func(r rows, h *head) error { return r.Scan(&h.pos, &h.id) }, k.sql(headsMySQL), g.id, after, page)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if len(found) == 0 || row.pos != found[len(found)-1].pos {
				found = append(found, row)
			}
		}
		if len(rows) < page {
			break
		}
		after = rows[len(rows)-1].pos
	}
	return found[:min(len(found), limit)], nil
}

// freeHeads leaves out those of keys that are taken or held back, and those that are not due yet. The
// walk was another snapshot: what was taken then may have come back to its key queue since, in front.
func (k keyQueues) freeHeads(ctx context.Context, tx lockedGroup, heads []int64, found *keysFound) (free []int64, err error) {
	type head struct{ id, wait, queue, held int64 }
	held, groups := "0", []any{}
	if tx.group.park { // the first question is asked once for all heads
		held = `CASE WHEN EXISTS (SELECT 1 FROM {holds} WHERE group_id = ?)
			AND EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id) THEN 1 ELSE 0 END`
		groups = append(groups, tx.group.id)
	}
	query, args := k.withIDs(`
		SELECT m.id, m.due_at - {now}, m.pos, `+held+` FROM {messages} m WHERE m.state = {keyed}
		AND NOT EXISTS (SELECT 1 FROM {messages} t WHERE t.group_id = m.group_id AND t.state = {keyhead} AND t.pos = m.pos)
		AND NOT EXISTS (SELECT 1 FROM {messages} t WHERE t.group_id = m.group_id AND t.state = {keyed} AND t.pos = m.pos AND t.id < m.id)
		AND m.id {in}`, heads, groups...)
	all, err := collect(ctx, tx, func(r rows, h *head) error { return r.Scan(&h.id, &h.wait, &h.queue, &h.held) }, query, args...)
	if err != nil {
		return nil, err
	}
	var parked []int64
	for _, h := range all {
		wait := time.Duration(h.wait) * time.Microsecond
		switch {
		case h.held != 0:
			parked = append(parked, h.queue)
		case wait <= 0:
			free = append(free, h.id)
		default:
			found.waiting = append(found.waiting, waitingHead{h.id, time.Now().Add(wait)})
		}
	}
	slices.Sort(free)
	if len(parked) > walkOver {
		err = k.holds.park(ctx, tx, parked)
	}
	return free, err
}
