package queue

import (
	"context"
	stdsql "database/sql"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

const (
	// walkLimit is how many key queues one claim examines at most. Queues that wait are examined as well, so it is generous.
	walkLimit = 512
	// walkAhead is how many more key queues than it needs a claim examines. Most key queues are free.
	walkAhead = 32
	// freshLimit is how many new rows one claim reads.
	freshLimit = 1000
)

// keyQueues claims messages from the queues of their keys. Only the first message of a queue can be claimed, and none while another
// message of the queue is claimed. A claim locks the group.
type keyQueues struct {
	*database.DB
	claims claims
	groups groups
	holds  holds
	runs   keyRuns
}

// keyClaim describes the messages that a receiver claims from key queues.
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

// keysFound is the result of a claim from the key queues of a group.
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

// claim claims the first messages of key queues in which none is claimed. One claim runs at a time for a group: otherwise one that
// sees a late commit could claim a second message of a key.
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
			if err := k.orphans(ctx, &tx); err != nil {
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
		slices.SortFunc(free, func(a, b sizedID) int { return int(a.id - b.id) })
		if k.Name == sqlconfig.MySQL {
			n := min(len(free), max(c.limit, 1))
			sized, err := sized(ctx, k.DB, tx, idsOf(free[:n]))
			if err != nil {
				return err
			}
			free = append(sized, free[n:]...)
		}
		ids := c.fitting(free)
		if len(ids) < len(free) {
			if slices.ContainsFunc(free[len(ids):], func(m sizedID) bool { return walked[m.id] }) {
				found.walk, found.round = c.walk, false // the walk is to come here again
			}
			found.left = true
		} else if c.runs {
			if ids, err = k.runs.extend(ctx, tx, c.claim, ids); err != nil {
				return err
			}
		}
		found.taken, err = k.claims.take(ctx, tx, ids, database.StateKeyHead, c.owner)
		for i := range found.taken {
			found.taken[i].fence = tx.fence
		}
		return err
	})
	slices.SortFunc(found.taken, func(a, b record) int { return int(a.id - b.id) })
	return found, err
}

// locked does what [groups.locked] does for a claim, whose commit need not wait for the disk: a crash of the server
// that undoes it is a redelivery.
// It reports whether messages were returned to key queues since the last claim.
func (k keyQueues) locked(ctx context.Context, c keyClaim, f func(tx lockedGroup, changed bool) error) error {
	if k.Name != sqlconfig.Postgres {
		return k.groups.locked(ctx, k.Relaxed, c.group, func(tx lockedGroup) error { return f(tx, false) })
	}
	return k.Relaxed.InTx(ctx, func(tx database.Executor) error {
		began := time.Now()
		type row struct{ returns, fence int64 }
		turn, err := database.Collect(ctx, tx, func(r database.Rows, x *row) error { return r.Scan(&x.returns, &x.fence) },
			k.SQL(`SELECT created_at, `+fenceColumn(k.DB)+` FROM {turns} WHERE group_id = ?
			AND set_config('idle_in_transaction_session_timeout', '10s', true) IS NOT NULL
			AND set_config('synchronous_commit', 'off', true) IS NOT NULL FOR UPDATE`), c.group.id)
		if err != nil {
			return err
		}
		turn = append(turn, row{}) // the group may have been dropped
		return f(lockedGroup{tx, c.group, turn[0].fence}, c.lows.locked(turn[0].returns, time.Since(began)))
	})
}

// hinted returns the first messages of the key queues that the hints name.
func (k keyQueues) hinted(ctx context.Context, tx database.Executor, c keyClaim, found *keysFound) (heads []keyHead, err error) {
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
func (k keyQueues) headsOf(ctx context.Context, tx database.Executor, c keyClaim) (heads []keyHead, err error) {
	const first = `SELECT l.pos, (SELECT m.id FROM {messages} m {force} WHERE m.group_id = ? AND m.state = {keyed} AND m.pos = l.pos ORDER BY m.pos, m.id LIMIT 1) FROM `
	var query string
	args := []any{c.group.id}
	if k.Name == sqlconfig.Postgres {
		query = k.SQL(headsOfPostgres)
		args = append(args, c.queues, c.lows.of(c.queues))
	} else {
		selects := make([]string, len(c.queues))
		for i, queue := range c.queues {
			selects[i] = "SELECT " + strconv.FormatInt(queue, 10) + " AS pos"
		}
		query = k.Complete(first + `(` + strings.Join(selects, " UNION ALL ") + `) l`)
	}
	type row struct {
		queue int64
		id    stdsql.NullInt64
	}
	found, err := database.Collect(ctx, tx, func(r database.Rows, x *row) error { return r.Scan(&x.queue, &x.id) }, query, args...)
	for _, x := range found {
		if x.id.Valid {
			heads = append(heads, keyHead{x.queue, x.id.Int64})
		}
	}
	return heads, err
}

// freshHeads returns messages of the group's key queues with ids beyond c.fresh. It reads the rows of all groups in
// their order: the sums keep the planner from the index that has all key queues of the group.
func (k keyQueues) freshHeads(ctx context.Context, tx database.Executor, c keyClaim, found *keysFound) (heads []keyHead, err error) {
	type row struct {
		keyHead
		own int
	}
	all, err := database.Collect(ctx, tx, func(r database.Rows, x *row) error { return r.Scan(&x.queue, &x.id, &x.own) }, k.SQL(`
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
	_, ok, err := database.Number(ctx, k.Pool, k.SQL(`SELECT id FROM {messages} WHERE group_id = ? AND state IN ({keyed}, {keyhead}) LIMIT 1`), g.id)
	return ok, err
}

// orphans returns the messages of dead consumers to their key queues. Their attempts are counted. A consumer that is only late may
// still work on them, so what is handed out from now on has a higher fencing number, and the number waits for the disk: a crash of the
// server must not give it out twice.
func (k keyQueues) orphans(ctx context.Context, tx *lockedGroup) error {
	n, err := tx.Exec(ctx, k.SQL(`UPDATE {messages} SET state = {keyed}, owner = 0 WHERE group_id = ? AND state = {keyhead} AND owner NOT IN ({live})`), tx.group.id, tx.group.id)
	if err != nil || n == 0 || !k.Fenced {
		return err
	}
	if err := raiseFence(ctx, k.DB, tx); err != nil || k.Name != sqlconfig.Postgres {
		return err
	}
	_, err = tx.Exec(ctx, `SET LOCAL synchronous_commit TO DEFAULT`)
	return err
}

// walk returns which of the heads can be claimed. It continues over the key queues until it has found as many as the claim needs,
// has completed the round, or has examined walkLimit of them. It also returns the messages that it has passed.
func (k keyQueues) walk(ctx context.Context, tx lockedGroup, c keyClaim, heads []keyHead, found *keysFound) (free []sizedID, walked map[int64]bool, err error) {
	limit := max(walkLimit, c.limit)
	if c.brief {
		limit = c.limit + walkAhead
	}
	walked, seen := make(map[int64]bool), make(map[int64]bool)
	for looked, step := 0, c.limit+walkAhead; ; step *= 4 {
		// If the hints may suffice, the walk can wait a little.
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

func (k keyQueues) heads(ctx context.Context, tx database.Executor, g group, after int64, limit int) (found []keyHead, last int64, err error) {
	scan := func(r database.Rows, h *keyHead) error { return r.Scan(&h.queue, &h.id) }
	switch k.Name {
	case sqlconfig.Postgres:
		found, err = database.Collect(ctx, tx, scan, k.SQL(headsPostgres), g.id, after, g.id, g.id, limit)
	case sqlconfig.SQLite:
		found, err = database.Collect(ctx, tx, scan, k.SQL(headsSQLite), g.id, after, g.id, g.id, limit)
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
func (k keyQueues) pagedHeads(ctx context.Context, tx database.Executor, g group, after int64, limit int) (found []keyHead, err error) {
	for page := limit + walkAhead; len(found) < limit; {
		rows, err := database.Collect(ctx, tx, func(r database.Rows, h *keyHead) error { return r.Scan(&h.queue, &h.id) }, k.SQL(headsMySQL), g.id, after, page)
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

// freeHeads leaves out heads whose key has a claimed message or is held back, and those that are not due. The walk used another
// snapshot: a message that was claimed then may be in front of its key queue again. On MySQL the sizes are 0.
func (k keyQueues) freeHeads(ctx context.Context, tx lockedGroup, c keyClaim, heads []keyHead, found *keysFound) (free []sizedID, err error) {
	type head struct{ id, wait, queue, held, size int64 }
	ids, queues := make([]int64, len(heads)), make([]int64, len(heads))
	for i, h := range heads {
		ids[i], queues[i] = h.id, h.queue
	}
	heldBack, args := "0", []any{}
	if tx.group.park { // the first question is asked once for all heads
		heldBack = `CASE WHEN EXISTS (SELECT 1 FROM {holds} WHERE group_id = ?)
			AND EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id) THEN 1 ELSE 0 END`
		args = append(args, tx.group.id)
	}
	size := "octet_length(m.payload) + octet_length(m.headers)"
	if k.Name == sqlconfig.MySQL {
		size = "0" // it reads the whole payload to know its length
	}
	query := `SELECT m.id, CASE WHEN m.due_at > 0 THEN m.due_at ELSE 0 END - {now}, m.pos, ` + size + `, ` + heldBack
	if k.Name == sqlconfig.Postgres {
		query, args = k.SQL(query+freeHeadsPostgres), append(args, queues, ids, c.lows.of(queues), tx.group.id)
	} else {
		query, args = k.WithIDs(query+freeHeads, ids, args...)
	}
	began := time.Now()
	all, err := database.Collect(ctx, tx, func(r database.Rows, h *head) error { return r.Scan(&h.id, &h.wait, &h.queue, &h.size, &h.held) }, query, args...)
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
			free = append(free, sizedID{h.id, h.size})
		default:
			found.waiting = append(found.waiting, waitingHead{keyHead{h.queue, h.id}, time.Now().Add(wait)})
		}
	}
	if len(parked) > walkOver {
		err = k.holds.park(ctx, tx, parked)
	}
	return free, err
}

// freeHeads has the conditions on first messages of key queues in which none is claimed. A scalar subquery stays what it is. Of NOT
// EXISTS with {keyhead}, MariaDB makes a list of all claimed messages, for which it reads the whole index; with "t.id < m.id" it
// reads the whole queue of each key. MySQL 9 sorts the whole queue of each key unless ORDER BY names all columns of the index.
const freeHeads = ` FROM {messages} m WHERE m.state = {keyed}
	AND (SELECT t.id FROM {messages} t {force} WHERE t.group_id = m.group_id AND t.state = {keyhead} AND t.pos = m.pos LIMIT 1) IS NULL
	AND (SELECT t.id FROM {messages} t {force} WHERE t.group_id = m.group_id AND t.state = {keyed} AND t.pos = m.pos ORDER BY t.group_id, t.state, t.pos, t.id LIMIT 1) = m.id
	AND m.id {in}`
