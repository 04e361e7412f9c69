package sql

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

// A message that is poisoned in a group that parks gets a row in {holds}, in the same commit, which
// names its lane. A claim leaves the heads of lanes alone that have such a row for an earlier message.
// Ids are places: a replayed message has its own again, in front of what waited behind it. Who takes
// a hold away, by a replay, a drop or the retention, has the group's turn, and puts back what had been
// moved out of the claims' way.

const (
	// walkOver is how many lanes that are held back a claim walks over. Where it finds more, their
	// messages are moved out of its way.
	walkOver = 32
	// parkAtOnce is how many messages one claim moves, so that it takes no long.
	parkAtOnce = "1000"
)

// hold makes a poisoned message hold its lane back. A message without a key has none.
func (s *store) hold(ctx context.Context, tx executor, g group, id int64) error {
	query := `INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, lane, {now} FROM {messages} WHERE id = ? AND lane <> 0 ` + s.ignore
	if g.order == driver.OrderedStrictly {
		query = `INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, 0, {now} FROM {messages} WHERE id = ? ` + s.ignore
	}
	_, err := tx.exec(ctx, s.sql(query), id)
	return err
}

// holdAdded makes messages hold their lanes back that an operator has added to the poison queue of an ordered
// group, since the message with this id. Whether the group parks is not known here: holds mean nothing to
// one that does not.
func (s *store) holdAdded(ctx context.Context, tx executor, g group, since int64) error {
	lane, which := "lane", "AND lane <> 0 "
	switch g.order {
	case driver.Unordered:
		return nil
	case driver.OrderedStrictly:
		lane, which = "0", ""
	}
	_, err := tx.exec(ctx, s.sql(`INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, `+lane+`, {now}
		FROM {messages} WHERE group_id = ? AND state = 2 AND id > ? `+which+s.ignore), g.id, since)
	return err
}

// park moves messages of lanes out of the claims' way whose first is held back, and so are all.
func (s *store) park(ctx context.Context, tx executor, g group, lanes []int64) error {
	query, args := s.withIDs(`
		SELECT m.id FROM {messages} m WHERE m.group_id = ? AND m.state = 4
		AND EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id)
		AND m.pos {in} LIMIT `+parkAtOnce, lanes, g.id)
	ids, err := numbers(ctx, tx, query, args...)
	if err != nil || len(ids) == 0 {
		return err
	}
	query, args = s.withIDs(`UPDATE {messages} SET state = 6 WHERE state = 4 AND id {in}`, ids)
	_, err = tx.exec(ctx, query, args...)
	return err
}

// release takes away what poisoned messages hold back. The transaction has the group's turn.
func (s *store) release(ctx context.Context, tx executor, g group, ids []int64) error {
	query, args := s.withIDs(`SELECT DISTINCT pos FROM {holds} WHERE message_id {in}`, ids)
	lanes, err := numbers(ctx, tx, query, args...)
	if err != nil || len(lanes) == 0 {
		return err
	}
	query, args = s.withIDs(`DELETE FROM {holds} WHERE message_id {in}`, ids)
	if _, err := tx.exec(ctx, query, args...); err != nil {
		return err
	}
	query, args = s.withIDs(unparkReleased+` AND m.pos {in}`, lanes, g.id)
	_, err = tx.exec(ctx, query, args...)
	return err
}

const unparkReleased = `
	UPDATE {messages} AS m SET state = 4 WHERE m.group_id = ? AND m.state = 6
	AND NOT EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id)`

// unpark puts back what nothing holds back any more: all, where the group does not park. Besides when
// that changes, it runs now and then, for what consumers left behind that did not agree.
func (s *store) unpark(ctx context.Context, ex executor, g group) error {
	query := unparkReleased
	if !g.park {
		query = `UPDATE {messages} SET ` + g.place() + ` WHERE group_id = ? AND state = 6`
	}
	_, err := ex.exec(ctx, s.sql(query), g.id)
	return err
}

// adjustHolds makes the holds fit what the group asks for. The transaction has its turn.
func (s *store) adjustHolds(ctx context.Context, tx executor, g group, reordered bool) error {
	var query string
	switch {
	case !g.park:
		query = `DELETE FROM {holds} WHERE group_id = ?`
	case reordered && g.order == driver.OrderedStrictly:
		query = `UPDATE {holds} SET pos = 0 WHERE group_id = ?`
	case reordered:
		query = `UPDATE {holds} SET pos = (SELECT m.lane FROM {messages} m WHERE m.id = message_id) WHERE group_id = ?`
	default:
		return nil
	}
	if _, err := tx.exec(ctx, s.sql(query), g.id); err != nil {
		return err
	}
	if reordered { // into the lanes of the new order; a claim parks them again
		g.park = false
	}
	return s.unpark(ctx, tx, g)
}

// behind counts, for poisoned messages, what each holds back up to the next of its lane.
func (s *store) behind(ctx context.Context, ids []int64) (map[int64]int, error) {
	type count struct{ id, n int64 }
	query, args := s.withIDs(`
		SELECT h.message_id, (
			SELECT count(*) FROM {messages} m WHERE m.group_id = h.group_id AND m.state IN (4, 6) AND m.pos = h.pos AND m.id > h.message_id
			AND NOT EXISTS (SELECT 1 FROM {holds} n WHERE n.group_id = h.group_id AND n.pos = h.pos AND n.message_id > h.message_id AND n.message_id < m.id)
		) FROM {holds} h WHERE h.message_id {in}`, ids)
	all, err := collect(ctx, s.db, func(r rows, c *count) error { return r.Scan(&c.id, &c.n) }, query, args...)
	counts := make(map[int64]int, len(all))
	for _, c := range all {
		counts[c.id] = int(c.n)
	}
	return counts, err
}
