package sql

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// walkOver is how many key queues that are held back a claim walks over. Where it finds more, their
	// messages are moved out of its way.
	walkOver = 32
	// parkAtOnce is how many messages one claim moves, so that it takes no long.
	parkAtOnce = "1000"
)

// holds are the poisoned messages that hold back their keys' queues, in groups that park: a row in {holds}, written
// in the same commit as the poisoning, names the queue. A claim leaves the heads of queues alone that have such a
// row for an earlier message. Ids are places: a replayed message has its own again, in front of what waited behind
// it. Who takes a hold away, by a replay, a drop or the retention, has locked the group, and puts back what had
// been moved out of the claims' way.
type holds struct{ *database }

// add makes a poisoned message hold its key queue back. A message without a key has none.
func (h holds) add(ctx context.Context, tx executor, g group, id int64) error {
	query := `INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, lane, {now} FROM {messages} WHERE id = ? AND lane <> 0 ` + h.ignore
	if g.order == driver.OrderedStrictly {
		query = `INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, 0, {now} FROM {messages} WHERE id = ? ` + h.ignore
	}
	_, err := tx.exec(ctx, h.sql(query), id)
	return err
}

// addSince makes messages hold their key queues back that an operator has added to the poison queue of an ordered
// group, since the message with this id. Whether the group parks is not known here: holds mean nothing to
// one that does not.
func (h holds) addSince(ctx context.Context, tx executor, g group, since int64) error {
	queue, which := "lane", "AND lane <> 0 "
	switch g.order {
	case driver.Unordered:
		return nil
	case driver.OrderedStrictly:
		queue, which = "0", ""
	}
	_, err := tx.exec(ctx, h.sql(`INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, `+queue+`, {now}
		FROM {messages} WHERE group_id = ? AND state = {poisoned} AND id > ? `+which+h.ignore), g.id, since)
	return err
}

// park moves messages of key queues out of the claims' way whose first is held back, and so are all.
func (h holds) park(ctx context.Context, tx lockedGroup, queues []int64) error {
	query, args := h.withIDs(`
		SELECT m.id FROM {messages} m WHERE m.group_id = ? AND m.state = {keyed}
		AND EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id)
		AND m.pos {in} LIMIT `+parkAtOnce, queues, tx.group.id)
	ids, err := numbers(ctx, tx, query, args...)
	if err != nil || len(ids) == 0 {
		return err
	}
	query, args = h.withIDs(`UPDATE {messages} SET state = {parked} WHERE state = {keyed} AND id {in}`, ids)
	_, err = tx.exec(ctx, query, args...)
	return err
}

// release takes away what poisoned messages hold back.
func (h holds) release(ctx context.Context, tx lockedGroup, ids []int64) error {
	query, args := h.withIDs(`SELECT DISTINCT pos FROM {holds} WHERE message_id {in}`, ids)
	queues, err := numbers(ctx, tx, query, args...)
	if err != nil || len(queues) == 0 {
		return err
	}
	query, args = h.withIDs(`DELETE FROM {holds} WHERE message_id {in}`, ids)
	if _, err := tx.exec(ctx, query, args...); err != nil {
		return err
	}
	query, args = h.withIDs(unparkReleased+` AND m.pos {in}`, queues, tx.group.id)
	n, err := tx.exec(ctx, query, args...)
	if err != nil || n == 0 {
		return err
	}
	return h.noteReturns(ctx, tx, tx.group)
}

const unparkReleased = `
	UPDATE {messages} AS m SET state = {keyed} WHERE m.group_id = ? AND m.state = {parked}
	AND NOT EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id)`

// unpark puts back what nothing holds back any more: all, where the group does not park. Besides when
// that changes, it runs now and then, for what consumers left behind that did not agree.
func (h holds) unpark(ctx context.Context, tx executor, g group) error {
	query := unparkReleased
	if !g.park {
		query = `UPDATE {messages} SET ` + g.place() + ` WHERE group_id = ? AND state = {parked}`
	}
	n, err := tx.exec(ctx, h.sql(query), g.id)
	if err != nil || n == 0 {
		return err
	}
	return h.noteReturns(ctx, tx, g)
}

// adjust makes the holds fit what the group asks for.
func (h holds) adjust(ctx context.Context, tx lockedGroup, reordered bool) error {
	g := tx.group
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
	if _, err := tx.exec(ctx, h.sql(query), g.id); err != nil {
		return err
	}
	if reordered { // into the key queues of the new order; a claim parks them again
		g.park = false
	}
	return h.unpark(ctx, tx, g)
}

// behind counts, for poisoned messages, what each holds back up to the next of its key queue.
func (h holds) behind(ctx context.Context, ids []int64) (map[int64]int, error) {
	type count struct{ id, n int64 }
	query, args := h.withIDs(`
		SELECT h.message_id, (
			SELECT count(*) FROM {messages} m WHERE m.group_id = h.group_id AND m.state IN ({keyed}, {parked}) AND m.pos = h.pos AND m.id > h.message_id
			AND NOT EXISTS (SELECT 1 FROM {holds} n WHERE n.group_id = h.group_id AND n.pos = h.pos AND n.message_id > h.message_id AND n.message_id < m.id)
		) FROM {holds} h WHERE h.message_id {in}`, ids)
	all, err := collect(ctx, h.pool, func(r rows, c *count) error { return r.Scan(&c.id, &c.n) }, query, args...)
	counts := make(map[int64]int, len(all))
	for _, c := range all {
		counts[c.id] = int(c.n)
	}
	return counts, err
}
