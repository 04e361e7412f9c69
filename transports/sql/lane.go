package sql

import (
	"context"
	"hash/fnv"
	"math"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// walkLimit is how many keys one claim looks at, at least. Keys that are held back are walked over, so it is
// generous.
const walkLimit = 512

// laneOf is the number of a message's key, 0 for none. Keys that share a number share a lane, which
// costs them some concurrency and no order.
func laneOf(msg *message.Message) int64 {
	key := bus.PartitionKey(msg)
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
	taken []record
	after int64         // where the next walk goes on, so that every key gets its turn
	wait  time.Duration // until the next message that holds back its key is due
	holds bool          // there is one
}

// claimLanes takes the first message of keys of which none is taken. One claim runs at a time for a
// group: otherwise one that sees a late commit could take a second message of a key.
func (s *store) claimLanes(ctx context.Context, c claim) (found lanes, err error) {
	found.after = c.after
	busy, err := s.anyLanes(ctx, c.group)
	if err != nil || !busy {
		return found, err
	}
	err = s.quick.inTx(ctx, func(tx executor) error {
		if err := s.lockTurn(ctx, tx, c.group); err != nil {
			return err
		}
		if err := s.orphans(ctx, tx, c.group); err != nil {
			return err
		}
		heads, after, err := s.walk(ctx, tx, c.group, c.after, max(walkLimit, c.limit))
		if err != nil || len(heads) == 0 {
			return err
		}
		found.after = after
		free, err := s.freeHeads(ctx, tx, c.group, heads, &found)
		if err != nil || len(free) == 0 {
			return err
		}
		if len(free) > c.limit {
			free = free[:c.limit]
			found.after = c.after // there is more to take here
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

// anyLanes spares idle groups the transaction.
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

// walk finds the first message of each key, behind the key of the last walk and round to it again.
func (s *store) walk(ctx context.Context, tx executor, g group, after int64, limit int) (heads []int64, last int64, err error) {
	heads, last, err = s.heads(ctx, tx, g, after, limit)
	if err != nil || len(heads) == limit || after == math.MinInt64 {
		if len(heads) < limit {
			last = math.MinInt64
		}
		return heads, last, err
	}
	more, last, err := s.heads(ctx, tx, g, math.MinInt64, limit-len(heads))
	for _, id := range more {
		if !slices.Contains(heads, id) {
			heads = append(heads, id)
		}
	}
	return heads, last, err
}

func (s *store) heads(ctx context.Context, tx executor, g group, after int64, limit int) (ids []int64, last int64, err error) {
	type head struct{ pos, id int64 }
	scan := func(r rows, h *head) error { return r.Scan(&h.pos, &h.id) }
	var found []head
	switch s.name {
	case Postgres:
		found, err = collect(ctx, tx, scan, s.sql(headsPostgres), g.id, after, g.id, g.id, limit)
	case SQLite:
		found, err = collect(ctx, tx, scan, s.sql(headsSQLite), g.id, after, g.id, g.id, limit)
	default:
		found, err = collect(ctx, tx, scan, s.sql(headsMySQL), g.id, after, limit)
	}
	last = math.MinInt64
	for _, h := range found {
		ids = append(ids, h.id)
		last = h.pos
	}
	return ids, last, err
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
		case !found.holds || wait < found.wait:
			found.wait, found.holds = wait, true
		}
	}
	slices.Sort(free)
	if len(parked) > walkOver {
		err = s.park(ctx, tx, g, parked)
	}
	return free, err
}
