package sql

import (
	"context"
	stdsql "database/sql"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// walkLimit is how many lanes one claim looks at, at most, before it returns less than it was asked for.
	// Lanes that wait are walked over, so it is generous.
	walkLimit = 512
	// walkAhead is how many lanes it looks at beyond those it needs. Most lanes are free.
	walkAhead = 32
	// freshLimit is how many new rows one claim reads.
	freshLimit = 1000
)

// laneOf is the number of a message's key, 0 for none. Keys that share a number share a lane, which
// costs them some concurrency and no order.
func laneOf(msg *message.Message) int64 {
	key := driver.PartitionKey(msg)
	if key == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key))                                       // never fails
	if lane := int64(h.Sum64()); lane != 0 && lane != math.MinInt64 { //nolint:gosec // any number will do
		return lane
	}
	return 1
}

// lanes is what a claim from the lanes of a group found.
type lanes struct {
	taken   []record
	walk    laneWalk      // where the next claim goes on, so that every key gets its turn
	round   bool          // the walk has come round: there is no more that can be taken
	crowded bool          // so many lanes wait that the walk over them took all it may
	newest  int64         // the largest id among the new rows that were read
	more    bool          // there are more new rows
	waiting []waitingHead // heads that are not due yet
	left    bool          // there was more to take than was wanted
	walked  bool          // not only hints were followed
}

// claimLanes takes the first message of keys of which none is taken. One claim runs at a time for a
// group: otherwise one that sees a late commit could take a second message of a key.
func (s *store) claimLanes(ctx context.Context, c claim) (found lanes, err error) {
	found.walk = c.walk
	if !c.busy { // spares idle groups the transaction
		if busy, err := s.anyLanes(ctx, c.group); err != nil || !busy {
			found.walk, found.round = newLaneWalk(), true
			return found, err
		}
	}
	err = s.quick.inTx(ctx, func(tx executor) error {
		if err := s.lockLanes(ctx, tx, c.group); err != nil {
			return err
		}
		if c.orphans {
			if err := s.orphans(ctx, tx, c.group); err != nil {
				return err
			}
		}
		found = lanes{walk: c.walk}
		heads, err := s.hinted(ctx, tx, c, &found)
		if err != nil {
			return err
		}
		free, walked, err := s.walk(ctx, tx, c, heads, &found)
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
			if free, err = s.runs(ctx, tx, c, free); err != nil {
				return err
			}
		}
		found.taken, err = s.take(ctx, tx, free, stateLaneHead, c.owner)
		return err
	})
	slices.SortFunc(found.taken, func(a, b record) int { return int(a.id - b.id) })
	return found, err
}

// lockLanes is lockTurn for a claim, whose commit need not wait for the disk: a crash of the server that undoes
// it is a redelivery.
func (s *store) lockLanes(ctx context.Context, tx executor, g group) error {
	if s.name != Postgres {
		return s.lockTurn(ctx, tx, g)
	}
	_, _, err := number(ctx, tx, s.sql(`SELECT group_id FROM {turns} WHERE group_id = ?
		AND set_config('idle_in_transaction_session_timeout', '10s', true) IS NOT NULL
		AND set_config('synchronous_commit', 'off', true) IS NOT NULL FOR UPDATE`), g.id)
	return err
}

// hinted returns the messages that the hints lead to.
func (s *store) hinted(ctx context.Context, tx executor, c claim, found *lanes) (heads []int64, err error) {
	heads = slices.Clone(c.due)
	if len(c.lanes) > 0 {
		first, err := s.headsOf(ctx, tx, c.group, c.lanes)
		if err != nil {
			return nil, err
		}
		heads = append(heads, first...)
	}
	if c.fresh > 0 {
		fresh, err := s.freshHeads(ctx, tx, c, found)
		if err != nil {
			return nil, err
		}
		heads = append(heads, fresh...)
	}
	return heads, nil
}

// headsOf returns the first message of each of the lanes.
func (s *store) headsOf(ctx context.Context, tx executor, g group, of []int64) ([]int64, error) {
	const first = `SELECT (SELECT m.id FROM {messages} m {hint} WHERE m.group_id = ? AND m.state = 4 AND m.pos = l.pos ORDER BY m.pos, m.id LIMIT 1) FROM `
	var query string
	args := []any{g.id}
	if s.name == Postgres {
		query = s.sql(strings.Replace(first, "{hint}", "", 1) + `unnest(?::bigint[]) AS l(pos)`)
		args = append(args, of)
	} else {
		selects := make([]string, len(of))
		for i, lane := range of {
			selects[i] = "SELECT " + strconv.FormatInt(lane, 10) + " AS pos"
		}
		hint := ""
		if s.name == MySQL {
			hint = "FORCE INDEX ({queue})"
		}
		query = s.complete(strings.Replace(first, "{hint}", hint, 1) + `(` + strings.Join(selects, " UNION ALL ") + `) l`)
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

// freshHeads returns messages of the group's lanes with ids beyond c.fresh. It reads the rows of all groups in
// their order: the sums keep the planner from the index that has all lanes of the group.
func (s *store) freshHeads(ctx context.Context, tx executor, c claim, found *lanes) (ids []int64, err error) {
	type row struct {
		id  int64
		own int
	}
	all, err := collect(ctx, tx, func(r rows, x *row) error { return r.Scan(&x.id, &x.own) }, s.sql(`
		SELECT id, CASE WHEN group_id + 0 = ? AND state + 0 = 4 THEN 1 ELSE 0 END FROM {messages} WHERE id > ? ORDER BY id LIMIT ?`),
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

// anyLanes reports whether the group has messages in lanes.
func (s *store) anyLanes(ctx context.Context, g group) (bool, error) {
	_, ok, err := number(ctx, s.db, s.sql(`SELECT id FROM {messages} WHERE group_id = ? AND state IN (4, 5) LIMIT 1`), g.id)
	return ok, err
}

// orphans puts back into their lanes what consumers had taken that are no more. Their attempt has
// been counted.
func (s *store) orphans(ctx context.Context, tx executor, g group) error {
	_, err := tx.exec(ctx, s.sql(`UPDATE {messages} SET state = 4, owner = 0 WHERE group_id = ? AND state = 5 AND owner NOT IN ({live})`), g.id, g.id)
	return err
}

// walk returns which of the heads can be taken, and goes on over the lanes until it has found as many as the claim needs, has come round, or has looked at as many as it may. It returns which messages it came by.
func (s *store) walk(ctx context.Context, tx executor, c claim, heads []int64, found *lanes) (free []int64, walked map[int64]bool, err error) {
	limit := max(walkLimit, c.limit)
	if c.brief {
		limit = c.limit + walkAhead
	}
	walked, seen := make(map[int64]bool), make(map[int64]bool)
	for looked, step := 0, c.limit+walkAhead; ; step *= 4 {
		// Where the hints alone may do, the walk can wait a little.
		if looked > 0 || !c.hints || len(heads) < c.limit {
			step = min(step, limit-looked, walkLimit)
			some, last, err := s.heads(ctx, tx, c.group, found.walk.after, step)
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
			more, err := s.freeHeads(ctx, tx, c.group, heads, found)
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

func (s *store) heads(ctx context.Context, tx executor, g group, after int64, limit int) (ids []int64, last int64, err error) {
	scan := func(r rows, h *head) error { return r.Scan(&h.pos, &h.id) }
	var found []head
	switch s.name {
	case Postgres:
		found, err = collect(ctx, tx, scan, s.sql(headsPostgres), g.id, after, g.id, g.id, limit)
	case SQLite:
		found, err = collect(ctx, tx, scan, s.sql(headsSQLite), g.id, after, g.id, g.id, limit)
	default:
		found, err = s.pagedHeads(ctx, tx, g, after, limit)
	}
	last = noLane
	for _, h := range found {
		ids = append(ids, h.id)
		last = h.pos
	}
	return ids, last, err
}

// head is the first message of a lane.
type head struct{ pos, id int64 }

// pagedHeads is heads where the rows of a lane can't be skipped within a statement.
func (s *store) pagedHeads(ctx context.Context, tx executor, g group, after int64, limit int) (found []head, err error) {
	for page := limit + walkAhead; len(found) < limit; {
		rows, err := collect(ctx, tx, func(r rows, h *head) error { return r.Scan(&h.pos, &h.id) }, s.sql(headsMySQL), g.id, after, page)
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
// walk was another snapshot: what was taken then may have come back to its lane since, in front.
func (s *store) freeHeads(ctx context.Context, tx executor, g group, heads []int64, found *lanes) (free []int64, err error) {
	type head struct{ id, wait, lane, held int64 }
	held, groups := "0", []any{}
	if g.park { // the first question is asked once for all heads
		held = `CASE WHEN EXISTS (SELECT 1 FROM {holds} WHERE group_id = ?)
			AND EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id) THEN 1 ELSE 0 END`
		groups = append(groups, g.id)
	}
	query, args := s.withIDs(`
		SELECT m.id, m.due_at - {now}, m.pos, `+held+` FROM {messages} m WHERE m.state = 4
		AND NOT EXISTS (SELECT 1 FROM {messages} t WHERE t.group_id = m.group_id AND t.state = 5 AND t.pos = m.pos)
		AND NOT EXISTS (SELECT 1 FROM {messages} t WHERE t.group_id = m.group_id AND t.state = 4 AND t.pos = m.pos AND t.id < m.id)
		AND m.id {in}`, heads, groups...)
	all, err := collect(ctx, tx, func(r rows, h *head) error { return r.Scan(&h.id, &h.wait, &h.lane, &h.held) }, query, args...)
	if err != nil {
		return nil, err
	}
	var parked []int64
	for _, h := range all {
		wait := time.Duration(h.wait) * time.Microsecond
		switch {
		case h.held != 0:
			parked = append(parked, h.lane)
		case wait <= 0:
			free = append(free, h.id)
		default:
			found.waiting = append(found.waiting, waitingHead{h.id, time.Now().Add(wait)})
		}
	}
	slices.Sort(free)
	if len(parked) > walkOver {
		err = s.park(ctx, tx, g, parked)
	}
	return free, err
}
