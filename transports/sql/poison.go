package sql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// errLost is a message that another consumer has: this one's lease had run out.
var errLost = errors.New("its lease has run out, and another consumer has it")

// poison sets one message of the owner's aside. It may be called again where the answer was lost.
func (s *store) poison(ctx context.Context, g group, owner, id int64, headers []byte) error {
	if !g.park {
		return s.setAside(ctx, s.db, owner, id, headers)
	}
	return s.db.inTx(ctx, func(tx executor) error {
		if err := s.setAside(ctx, tx, owner, id, headers); err != nil {
			return err
		}
		return s.hold(ctx, tx, g, id)
	})
}

func (s *store) setAside(ctx context.Context, ex executor, owner, id int64, headers []byte) error {
	n, err := ex.exec(ctx, s.sql(`UPDATE {messages} SET state = 2, pos = {now}, owner = 0, headers = ? WHERE owner = ? AND id = ?`),
		headers, owner, id)
	if err != nil || n == 1 {
		return err
	}
	_, there, err := number(ctx, ex, s.sql(`SELECT id FROM {messages} WHERE id = ? AND state = 2`), id)
	if err == nil && !there {
		err = errLost
	}
	return err
}

// PoisonQueue is the poison queue of a group.
func (t *Transport) PoisonQueue(group string) driver.PoisonQueue {
	return &poisonQueue{transport: t, store: t.store, group: group}
}

// poisonQueue is a group's poisoned messages. An id is the time of the poisoning and the row's.
type poisonQueue struct {
	transport *Transport
	store     *store
	group     string
}

type poisoned struct {
	pos int64
	record
}

const poisonedColumns = "pos, " + messageColumns

// listPoisoned begins where a page ended. The index is read from there on: no database does so for
// "pos > ? OR pos = ? AND id > ?" alone.
const listPoisoned = `SELECT ` + poisonedColumns + ` FROM {messages} WHERE group_id = ? AND state = 2
	AND pos >= ? AND (pos > ? OR id > ?) ORDER BY pos, id LIMIT ?`

func scanPoisoned(r rows, p *poisoned) error {
	return r.Scan(&p.pos, &p.id, &p.state, &p.attempt, &p.firstAt, &p.topic, &p.uuid, &p.headers, &p.payload)
}

func (q *poisonQueue) List(ctx context.Context, after string, limit int) (list []driver.PoisonedMessage, err error) {
	pos, id, err := q.position(after)
	if err != nil && after != "" {
		return nil, err
	}
	err = q.do(ctx, "list", func(ctx context.Context, g group) error {
		found, err := collect(ctx, q.store.db, scanPoisoned, q.store.sql(listPoisoned), g.id, pos, pos, id, max(limit, 0))
		if err != nil {
			return err
		}
		list, err = q.show(ctx, found)
		return err
	})
	return list, err
}

func (q *poisonQueue) Get(ctx context.Context, id string) (m driver.PoisonedMessage, err error) {
	_, row, err := q.position(id)
	if err != nil {
		return m, err
	}
	found := false
	err = q.do(ctx, "get", func(ctx context.Context, g group) error {
		all, err := collect(ctx, q.store.db, scanPoisoned,
			q.store.sql(`SELECT `+poisonedColumns+` FROM {messages} WHERE id = ? AND group_id = ? AND state = 2`), row, g.id)
		if err != nil || len(all) == 0 {
			return err
		}
		found = true
		list, err := q.show(ctx, all)
		if err == nil {
			m = list[0]
		}
		return err
	})
	if err == nil && !found {
		err = q.notFound(id)
	}
	return m, err
}

// Replay changes the rows in place, many in one statement: a message is either poisoned or ready.
func (q *poisonQueue) Replay(ctx context.Context, ids ...string) (int, error) {
	return q.each(ctx, "replay", ids, q.store.replay)
}

func (q *poisonQueue) Drop(ctx context.Context, ids ...string) (int, error) {
	return q.each(ctx, "drop", ids, q.store.drop)
}

// replay makes poisoned messages ready, as they were before their first hand-over. It returns which of
// them were there, and how many it changed. The transaction has the group's turn.
func (s *store) replay(ctx context.Context, tx executor, g group, ids []int64) (found []int64, n int64, err error) {
	type row struct {
		id      int64
		headers []byte
	}
	query, args := s.withIDs(`SELECT id, headers FROM {messages} WHERE group_id = ? AND state = 2 AND id {in}`, ids, g.id)
	rows, err := collect(ctx, tx, func(r rows, x *row) error { return r.Scan(&x.id, &x.headers) }, query, args...)
	if err != nil || len(rows) == 0 {
		return nil, 0, err
	}
	fresh := make([]any, 0, 2*len(rows)+1)
	for _, x := range rows {
		headers, err := decodeHeaders(x.headers)
		if err != nil {
			return nil, 0, fmt.Errorf("message %d: %w", x.id, err)
		}
		driver.ClearFault(headers)
		found = append(found, x.id)
		fresh = append(fresh, x.id, encodeHeaders(headers))
	}
	query, args = s.withIDs(`UPDATE {messages} SET `+g.place()+`, attempt = 0, due_at = 0, headers = CASE id`+
		strings.Repeat(s.whenHeaders, len(rows))+` END WHERE group_id = ? AND state = 2 AND id {in}`, found, append(fresh, g.id)...)
	if n, err = tx.exec(ctx, query, args...); err != nil {
		return nil, 0, err
	}
	return found, n, s.release(ctx, tx, g, found)
}

// drop deletes poisoned messages. It returns which of them were there, and how many it deleted. The
// transaction has the group's turn.
func (s *store) drop(ctx context.Context, tx executor, g group, ids []int64) (found []int64, n int64, err error) {
	query, args := s.withIDs(`SELECT id FROM {messages} WHERE group_id = ? AND state = 2 AND id {in}`, ids, g.id)
	if found, err = numbers(ctx, tx, query, args...); err != nil || len(found) == 0 {
		return nil, 0, err
	}
	query, args = s.withIDs(`DELETE FROM {messages} WHERE group_id = ? AND state = 2 AND id {in}`, found, g.id)
	if n, err = tx.exec(ctx, query, args...); err != nil {
		return nil, 0, err
	}
	return found, n, s.release(ctx, tx, g, found)
}

// Put writes all messages or, where it fails with another error than [driver.ErrNotFound], none.
func (q *poisonQueue) Put(ctx context.Context, msgs ...driver.PoisonedMessage) (err error) {
	records := make([]publication, len(msgs))
	for i, m := range msgs {
		if err := driver.ValidateTopic(m.Topic()); err != nil {
			return fmt.Errorf("sql: poisoned message %s: %w", driver.MessageID(m.Message), err)
		}
		if records[i], err = newPublication(m.Message); err != nil {
			return fmt.Errorf("sql: %w", err)
		}
	}
	there := false
	var missing error
	err = q.do(ctx, "write", func(ctx context.Context, g group) error {
		there = true
		return q.store.db.inTx(ctx, func(tx executor) error {
			missing = nil
			last, _, err := number(ctx, tx, q.store.sql(`SELECT COALESCE(max(id), 0) FROM {messages}`))
			if err != nil {
				return err
			}
			for i, m := range msgs {
				n, err := q.put(ctx, tx, g, m, records[i])
				if err != nil {
					return err
				}
				if n == 0 && missing == nil {
					missing = q.notFound(m.ID)
				}
			}
			return q.store.holdAdded(ctx, tx, g, last)
		})
	})
	if err == nil && !there {
		return fmt.Errorf("sql: group %q: %w; start its service once, which makes it", q.group, driver.ErrNotFound)
	}
	return errors.Join(err, missing)
}

func (q *poisonQueue) put(ctx context.Context, tx executor, g group, m driver.PoisonedMessage, p publication) (int64, error) {
	if m.ID != "" {
		_, row, err := q.position(m.ID)
		if err != nil {
			return 0, nil //nolint:nilerr // an id that was never given is not there
		}
		n, err := tx.exec(ctx, q.store.sql(`UPDATE {messages} SET lane = ?, topic = ?, uuid = ?, headers = ?, payload = ?
			WHERE id = ? AND group_id = ? AND state = 2`), p.lane, m.Topic(), p.uuid, p.headers, p.payload, row, g.id)
		if n == 0 && err == nil { // MySQL does not count a row that was so before
			n, _, err = number(ctx, tx, q.store.sql(`SELECT count(*) FROM {messages} WHERE id = ? AND group_id = ? AND state = 2`), row, g.id)
		}
		return n, err
	}
	firstAt := driver.FaultOf(m.Message.Metadata).FirstAt
	if firstAt.IsZero() {
		firstAt = time.Now()
	}
	return tx.exec(ctx, q.store.sql(`INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
		VALUES (?, 2, {now}, ?, ?, ?, ?, ?, ?)`), g.id, p.lane, firstAt.UnixMicro(), m.Topic(), p.uuid, p.headers, p.payload)
}

func (q *poisonQueue) Len(ctx context.Context) (n int, err error) {
	err = q.do(ctx, "count", func(ctx context.Context, g group) error {
		count, _, err := number(ctx, q.store.db, q.store.sql(`SELECT count(*) FROM {messages} WHERE group_id = ? AND state = 2`), g.id)
		n = int(count)
		return err
	})
	return n, err
}

// atOnce is how many messages of a poison queue one commit changes.
const atOnce = 250

// each does something with messages, many at once, and reports the first that was not there. change
// says which it has found and how many of them it has changed.
func (q *poisonQueue) each(ctx context.Context, what string, ids []string,
	change func(context.Context, executor, group, []int64) (found []int64, n int64, err error),
) (done int, missing error) {
	defer func() {
		if done > 0 {
			q.transport.waker.group(q.group)
		}
	}()
	for chunk := range slices.Chunk(ids, atOnce) {
		rows := make([]int64, 0, len(chunk))
		for _, id := range chunk {
			if _, row, err := q.position(id); err == nil {
				rows = append(rows, row)
			}
		}
		n, seen := int64(0), make(map[int64]bool) // over all tries: the answer to a change may be lost
		err := q.do(ctx, what, func(ctx context.Context, g group) (err error) {
			if len(rows) == 0 {
				return nil
			}
			var found []int64
			err = q.store.db.inTx(ctx, func(tx executor) (err error) {
				if err = q.store.lockTurn(ctx, tx, g); err == nil {
					found, n, err = change(ctx, tx, g, rows)
				}
				return err
			})
			for _, row := range found {
				seen[row] = true
			}
			return err
		})
		if err != nil {
			return done, err
		}
		done += int(n)
		for _, id := range chunk {
			if _, row, _ := q.position(id); !seen[row] && missing == nil {
				missing = q.notFound(id)
			}
		}
	}
	return done, missing
}

// do runs f with the group's row, if there is one.
func (q *poisonQueue) do(ctx context.Context, what string, f func(context.Context, group) error) error {
	if q.transport.isClosed() {
		return driver.ErrClosed
	}
	ctx, cancel := q.transport.while(ctx)
	defer cancel()
	err := q.store.retry(ctx, func(ctx context.Context) error {
		g, ok, err := q.store.findGroup(ctx, q.group)
		if err != nil || !ok {
			return err
		}
		return f(ctx, g)
	})
	if err != nil {
		return q.transport.failure(fmt.Sprintf("%s poisoned messages of group %q", what, q.group), err)
	}
	return nil
}

func (q *poisonQueue) position(id string) (pos, row int64, err error) {
	first, second, _ := strings.Cut(id, "-")
	pos, err1 := strconv.ParseInt(first, 10, 64)
	row, err2 := strconv.ParseInt(second, 10, 64)
	if err1 != nil || err2 != nil {
		return 0, 0, q.notFound(id)
	}
	return pos, row, nil
}

func (q *poisonQueue) notFound(id string) error {
	return fmt.Errorf("sql: poisoned message %q of group %q: %w", id, q.group, driver.ErrNotFound)
}

// show makes what operators see.
func (q *poisonQueue) show(ctx context.Context, found []poisoned) ([]driver.PoisonedMessage, error) {
	if len(found) == 0 {
		return nil, nil
	}
	ids := make([]int64, len(found))
	for i, p := range found {
		ids[i] = p.id
	}
	behind, err := q.store.behind(ctx, ids)
	if err != nil {
		return nil, err
	}
	list := make([]driver.PoisonedMessage, len(found))
	for i, p := range found {
		headers, err := decodeHeaders(p.headers)
		if err != nil {
			return nil, err
		}
		list[i] = driver.PoisonedMessage{
			ID:      fmt.Sprintf("%d-%d", p.pos, p.id),
			Message: newMessage(p.uuid, headers, p.payload),
			Fault:   driver.FaultOf(headers),
			Parked:  behind[p.id],
		}
	}
	return list, nil
}
