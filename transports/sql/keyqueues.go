package sql

import (
	"context"
	stdsql "database/sql"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
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
	runs    bool      // what stands behind the first of a queue may be taken with it
	walk    keyWalk   // where the last walk ended
	queues  []int64   // those that may have something
	due     []keyHead // messages that may be due
	lows    *keyLows  // where look-ups may begin
	orphans bool      // what dead consumers had taken is to be put back first
	busy    bool      // the last claim took something
	noWalk  bool      // hints and new rows are enough
	hints   bool      // the last walk was just now, so that hints may do if they lead to enough
	brief   bool      // the walk is to be short
	fresh   int64     // rows with ids beyond this one are new; 0 to leave them to the walk
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
	walking time.Duration // the slowest statement of the walk, less what it may take for what it found
	looking time.Duration // the slowest look-up, likewise
	orphans time.Duration // how long it took to put back what dead consumers had taken
}

// keyHead is the first message of a key queue.
type keyHead struct{ queue, id int64 }

// claim takes the first message of keys of which none is taken. One claim runs at a time for a
// group: otherwise one that sees a late commit could take a second message of a key.
func (k keyQueues) claim(ctx context.Context, c keyClaim) (found keysFound, err error) {
	var looking time.Duration
	if !c.busy { // spares idle groups the transaction
		began := time.Now()
		busy, err := k.any(ctx, c.group)
		looking = time.Since(began)
		if err != nil || !busy {
			return keysFound{walk: newKeyWalk(), round: true, walked: true, walking: looking, looking: looking}, err
		}
	}
	err = k.locked(ctx, c, func(tx lockedGroup, changed bool) error {
		found = keysFound{walk: c.walk, looking: looking}
		if c.orphans {
			began := time.Now()
			if err := k.orphans(ctx, tx); err != nil {
				return err
			}
			found.orphans = time.Since(began)
		}
		c := c
		c.noWalk = c.noWalk && (!changed || c.group.order == driver.OrderedStrictly)
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
// It says whether messages came back to key queues since the claim before.
func (k keyQueues) locked(ctx context.Context, c keyClaim, f func(tx lockedGroup, changed bool) error) error {
	if k.name != Postgres {
		return k.groups.locked(ctx, k.relaxed, c.group, func(tx lockedGroup) error { return f(tx, false) })
	}
	return k.relaxed.inTx(ctx, func(tx executor) error {
		began := time.Now()
		returns, _, err := number(ctx, tx, k.sql(`SELECT created_at FROM {turns} WHERE group_id = ?
			AND set_config('idle_in_transaction_session_timeout', '10s', true) IS NOT NULL
			AND set_config('synchronous_commit', 'off', true) IS NOT NULL FOR UPDATE`), c.group.id)
		if err != nil {
			return err
		}
		return f(lockedGroup{tx, c.group}, c.lows.locked(returns, time.Since(began)))
	})
}

// hinted returns the messages that the hints lead to.
func (k keyQueues) hinted(ctx context.Context, tx executor, c keyClaim, found *keysFound) (heads []keyHead, err error) {
	heads = slices.Clone(c.due)
	if len(c.queues) > 0 {
		began := time.Now()
		first, err := k.headsOf(ctx, tx, c)
		found.looking = max(found.looking, time.Since(began)-time.Duration(len(c.queues))*quickHead)
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

// headsOf returns the first message of each of the key queues that the claim names.
func (k keyQueues) headsOf(ctx context.Context, tx executor, c keyClaim) (heads []keyHead, err error) {
	const first = `SELECT l.pos, (SELECT m.id FROM {messages} m {hint} WHERE m.group_id = ? AND m.state = {keyed} AND m.pos = l.pos ORDER BY m.pos, m.id LIMIT 1) FROM `
	var query string
	args := []any{c.group.id}
	if k.name == Postgres {
		query = k.sql(headsOfPostgres)
		args = append(args, c.queues, c.lows.of(c.queues))
	} else {
		selects := make([]string, len(c.queues))
		for i, queue := range c.queues {
			selects[i] = "SELECT " + strconv.FormatInt(queue, 10) + " AS pos"
		}
		hint := ""
		if k.name == MySQL {
			hint = "FORCE INDEX ({queue})"
		}
		query = k.complete(strings.Replace(first, "{hint}", hint, 1) + `(` + strings.Join(selects, " UNION ALL ") + `) l`)
	}
	type row struct {
		queue int64
		id    stdsql.NullInt64
	}
	found, err := collect(ctx, tx, func(r rows, x *row) error { return r.Scan(&x.queue, &x.id) }, query, args...)
	for _, x := range found {
		if x.id.Valid {
			heads = append(heads, keyHead{x.queue, x.id.Int64})
		}
	}
	return heads, err
}

// freshHeads returns messages of the group's key queues with ids beyond c.fresh. It reads the rows of all groups in
// their order: the sums keep the planner from the index that has all key queues of the group.
func (k keyQueues) freshHeads(ctx context.Context, tx executor, c keyClaim, found *keysFound) (heads []keyHead, err error) {
	type row struct {
		keyHead
		own int
	}
	all, err := collect(ctx, tx, func(r rows, x *row) error { return r.Scan(&x.queue, &x.id, &x.own) }, k.sql(`
		SELECT pos, id, CASE WHEN group_id + 0 = ? AND state + 0 = {keyed} THEN 1 ELSE 0 END FROM {messages} WHERE id > ? ORDER BY id LIMIT ?`),
		c.group.id, c.fresh, freshLimit)
	for _, x := range all {
		found.newest = x.id
		if x.own == 1 {
			heads = append(heads, x.keyHead)
		}
	}
	found.more = len(all) == freshLimit
	return heads, err
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
func (k keyQueues) walk(ctx context.Context, tx lockedGroup, c keyClaim, heads []keyHead, found *keysFound) (free []int64, walked map[int64]bool, err error) {
	limit := max(walkLimit, c.limit)
	if c.brief {
		limit = c.limit + walkAhead
	}
	walked, seen := make(map[int64]bool), make(map[int64]bool)
	for looked, step := 0, c.limit+walkAhead; ; step *= 4 {
		// Where the hints alone may do, the walk can wait a little.
		if !c.noWalk && (looked > 0 || !c.hints || len(heads) < c.limit) {
			step = min(step, limit-looked, walkLimit)
			began := time.Now()
			some, last, err := k.heads(ctx, tx, c.group, found.walk.after, step)
			if err != nil {
				return nil, nil, err
			}
			found.walking = max(found.walking, time.Since(began)-time.Duration(len(some))*quickHead)
			looked += max(len(some), 1)
			found.round = found.walk.step(last, len(some) < step)
			for _, h := range some {
				walked[h.id] = true
			}
			heads = append(heads, some...)
		}
		heads = slices.DeleteFunc(heads, func(h keyHead) bool {
			was := seen[h.id]
			seen[h.id] = true
			return was
		})
		if len(heads) > 0 {
			more, err := k.freeHeads(ctx, tx, c, heads, found)
			if err != nil {
				return nil, nil, err
			}
			free = append(free, more...)
		}
		heads, c.hints = nil, false
		if c.noWalk || len(free) >= c.limit || found.round || looked >= limit {
			found.walked = looked > 0
			found.crowded = found.walked && len(free) < c.limit && !found.round
			return free, walked, nil
		}
	}
}

func (k keyQueues) heads(ctx context.Context, tx executor, g group, after int64, limit int) (found []keyHead, last int64, err error) {
	scan := func(r rows, h *keyHead) error { return r.Scan(&h.queue, &h.id) }
	switch k.name {
	case Postgres:
		found, err = collect(ctx, tx, scan, k.sql(headsPostgres), g.id, after, g.id, g.id, limit)
	case SQLite:
		found, err = collect(ctx, tx, scan, k.sql(headsSQLite), g.id, after, g.id, g.id, limit)
	default:
		found, err = k.pagedHeads(ctx, tx, g, after, limit)
	}
	last = noKeyQueue
	if len(found) > 0 {
		last = found[len(found)-1].queue
	}
	return found, last, err
}

// pagedHeads does what heads does if the rows of a key queue can't be skipped within a statement.
func (k keyQueues) pagedHeads(ctx context.Context, tx executor, g group, after int64, limit int) (found []keyHead, err error) {
	for page := limit + walkAhead; len(found) < limit; {
		rows, err := collect(ctx, tx, func(r rows, h *keyHead) error { return r.Scan(&h.queue, &h.id) }, k.sql(headsMySQL), g.id, after, page)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if len(found) == 0 || row.queue != found[len(found)-1].queue {
				found = append(found, row)
			}
		}
		if len(rows) < page {
			break
		}
		after = rows[len(rows)-1].queue
	}
	return found[:min(len(found), limit)], nil
}

// freeHeads leaves out those of keys that are taken or held back, and those that are not due yet. The
// walk was another snapshot: what was taken then may have come back to its key queue since, in front.
func (k keyQueues) freeHeads(ctx context.Context, tx lockedGroup, c keyClaim, heads []keyHead, found *keysFound) (free []int64, err error) {
	type head struct{ id, wait, queue, held int64 }
	ids, queues := make([]int64, len(heads)), make([]int64, len(heads))
	for i, h := range heads {
		ids[i], queues[i] = h.id, h.queue
	}
	held, args := "0", []any{}
	if tx.group.park { // the first question is asked once for all heads
		held = `CASE WHEN EXISTS (SELECT 1 FROM {holds} WHERE group_id = ?)
			AND EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id) THEN 1 ELSE 0 END`
		args = append(args, tx.group.id)
	}
	var query string
	if k.name == Postgres {
		query, args = k.sql(`SELECT m.id, CASE WHEN m.due_at > 0 THEN m.due_at ELSE 0 END - {now}, m.pos, `+held+freeHeadsPostgres), append(args, ids, c.lows.of(queues))
	} else {
		query, args = k.withIDs(`SELECT m.id, CASE WHEN m.due_at > 0 THEN m.due_at ELSE 0 END - {now}, m.pos, `+held+freeHeads, ids, args...)
	}
	began := time.Now()
	all, err := collect(ctx, tx, func(r rows, h *head) error { return r.Scan(&h.id, &h.wait, &h.queue, &h.held) }, query, args...)
	if err != nil {
		return nil, err
	}
	found.looking = max(found.looking, time.Since(began)-time.Duration(len(heads))*quickHead)
	var parked []int64
	for _, h := range all {
		c.lows.found(h.queue, h.id)
		wait := time.Duration(h.wait) * time.Microsecond
		switch {
		case h.held != 0:
			parked = append(parked, h.queue)
		case wait <= 0:
			free = append(free, h.id)
		default:
			found.waiting = append(found.waiting, waitingHead{keyHead{h.queue, h.id}, time.Now().Add(wait)})
		}
	}
	slices.Sort(free)
	if len(parked) > walkOver {
		err = k.holds.park(ctx, tx, parked)
	}
	return free, err
}

// freeHeads are the conditions on messages that are first in their key queues, none of which is out.
const freeHeads = ` FROM {messages} m WHERE m.state = {keyed}
	AND NOT EXISTS (SELECT 1 FROM {messages} t WHERE t.group_id = m.group_id AND t.state = {keyhead} AND t.pos = m.pos)
	AND NOT EXISTS (SELECT 1 FROM {messages} t WHERE t.group_id = m.group_id AND t.state = {keyed} AND t.pos = m.pos AND t.id < m.id)
	AND m.id {in}`
