package queue

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

const (
	// walkOver is how many held-back key queues a claim skips. If there are more, their messages are moved to the state parked.
	walkOver = 32
	// parkAtOnce is how many messages one claim moves. It keeps the transaction short.
	parkAtOnce = "1000"
)

// holds reads and writes the table of holds: the poisoned messages that hold back key queues, in groups that park. A row in {holds},
// written in the commit that poisons a message, names its queue. A claim skips the head of a queue that has such a row for an earlier
// message. A replayed message keeps its id, and so its position in front of the messages behind it. A replay, a drop or the retention
// removes a hold; it locks the group for that, and moves parked messages back.
type holds struct{ *database.DB }

// add adds a hold for a poisoned message. A message without a key gets none.
func (h holds) add(ctx context.Context, tx database.Executor, g group, id int64) error {
	query := `INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, lane, {now} FROM {messages} WHERE id = ? AND lane <> 0 ` + h.Ignore
	if g.order == driver.OrderedStrictly {
		query = `INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, 0, {now} FROM {messages} WHERE id = ? ` + h.Ignore
	}
	_, err := tx.Exec(ctx, h.SQL(query), id)
	return err
}

// addSince adds holds for messages that an operator has added to the poison queue of an ordered group, from this id on. It is not
// known here whether the group parks; a group that does not park ignores holds.
func (h holds) addSince(ctx context.Context, tx database.Executor, g group, since int64) error {
	queue, which := "lane", "AND lane <> 0 "
	switch g.order {
	case driver.Unordered:
		return nil
	case driver.OrderedStrictly:
		queue, which = "0", ""
	}
	_, err := tx.Exec(ctx, h.SQL(`INSERT INTO {holds} (message_id, group_id, pos, created_at) SELECT id, group_id, `+queue+`, {now}
		FROM {messages} WHERE group_id = ? AND state = {poisoned} AND id > ? `+which+h.Ignore), g.id, since)
	return err
}

// park moves the messages of key queues that are held back to the state parked, so that claims don't read them.
func (h holds) park(ctx context.Context, tx lockedGroup, queues []int64) error {
	query, args := h.WithIDs(`
		SELECT m.id FROM {messages} m WHERE m.group_id = ? AND m.state = {keyed}
		AND EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id)
		AND m.pos {in} LIMIT `+parkAtOnce, queues, tx.group.id)
	ids, err := database.Numbers(ctx, tx, query, args...)
	if err != nil || len(ids) == 0 {
		return err
	}
	query, args = h.WithIDs(`UPDATE {messages} SET state = {parked} WHERE state = {keyed} AND id {in}`, ids)
	_, err = tx.Exec(ctx, query, args...)
	return err
}

// release removes the holds of poisoned messages.
func (h holds) release(ctx context.Context, tx lockedGroup, ids []int64) error {
	query, args := h.WithIDs(`SELECT DISTINCT pos FROM {holds} WHERE message_id {in}`, ids)
	queues, err := database.Numbers(ctx, tx, query, args...)
	if err != nil || len(queues) == 0 {
		return err
	}
	query, args = h.WithIDs(`DELETE FROM {holds} WHERE message_id {in}`, ids)
	if _, err := tx.Exec(ctx, query, args...); err != nil {
		return err
	}
	query, args = h.WithIDs(unparkReleased+` AND m.pos {in}`, queues, tx.group.id)
	n, err := tx.Exec(ctx, query, args...)
	if err != nil || n == 0 {
		return err
	}
	return markReturns(ctx, h.DB, tx, tx.group)
}

const unparkReleased = `
	UPDATE {messages} AS m SET state = {keyed} WHERE m.group_id = ? AND m.state = {parked}
	AND NOT EXISTS (SELECT 1 FROM {holds} h WHERE h.group_id = m.group_id AND h.pos = m.pos AND h.message_id < m.id)`

// unpark moves parked messages back that are not held back any more: all of them if the group does not park. It runs when that
// changes, and from time to time, for messages that consumers with different settings have left.
func (h holds) unpark(ctx context.Context, tx database.Executor, g group) error {
	query := unparkReleased
	if !g.park {
		query = `UPDATE {messages} SET ` + g.readyColumns() + ` WHERE group_id = ? AND state = {parked}`
	}
	n, err := tx.Exec(ctx, h.SQL(query), g.id)
	if err != nil || n == 0 {
		return err
	}
	return markReturns(ctx, h.DB, tx, g)
}

// adjust changes the holds to those of the group's settings.
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
	if _, err := tx.Exec(ctx, h.SQL(query), g.id); err != nil {
		return err
	}
	if reordered { // into the key queues of the new order; a claim parks them again
		g.park = false
	}
	return h.unpark(ctx, tx, g)
}

// behind counts, for poisoned messages, the messages that each holds back, up to the next poisoned one of its key queue.
func (h holds) behind(ctx context.Context, ids []int64) (map[int64]int, error) {
	type count struct{ id, n int64 }
	query, args := h.WithIDs(`
		SELECT h.message_id, (
			SELECT count(*) FROM {messages} m WHERE m.group_id = h.group_id AND m.state IN ({keyed}, {parked}) AND m.pos = h.pos AND m.id > h.message_id
			AND NOT EXISTS (SELECT 1 FROM {holds} n WHERE n.group_id = h.group_id AND n.pos = h.pos AND n.message_id > h.message_id AND n.message_id < m.id)
		) FROM {holds} h WHERE h.message_id {in}`, ids)
	all, err := database.Collect(ctx, h.Pool, func(r database.Rows, c *count) error { return r.Scan(&c.id, &c.n) }, query, args...)
	counts := make(map[int64]int, len(all))
	for _, c := range all {
		counts[c.id] = int(c.n)
	}
	return counts, err
}
