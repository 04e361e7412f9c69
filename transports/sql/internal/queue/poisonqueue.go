package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A poisonQueue is a group's poison queue. The id of a message is the time when it was poisoned, and the id of its row.
type poisonQueue struct {
	core  *core
	group string
}

type poisoned struct {
	pos int64
	record
}

const poisonedColumns = "pos, " + messageColumns

// listPoisoned returns a page after a position. "pos >= ?" makes the databases start there in the index; with
// "pos > ? OR pos = ? AND id > ?" alone, none does.
const listPoisoned = `SELECT ` + poisonedColumns + ` FROM {messages} WHERE group_id = ? AND state = {poisoned}
	AND pos >= ? AND (pos > ? OR id > ?) ORDER BY pos, id LIMIT ?`

func scanPoisoned(r database.Rows, p *poisoned) error {
	return r.Scan(&p.pos, &p.id, &p.state, &p.attempt, &p.firstAt, &p.topic, &p.uuid, &p.headers, &p.payload)
}

func (q *poisonQueue) List(ctx context.Context, after string, limit int) (list []driver.PoisonedMessage, err error) {
	pos, id, err := q.position(after)
	if err != nil && after != "" {
		return nil, err
	}
	err = q.do(ctx, "list", func(ctx context.Context, g group) error {
		found, err := database.Collect(ctx, q.core.Pool, scanPoisoned, q.core.SQL(listPoisoned), g.id, pos, pos, id, max(limit, 0))
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
		all, err := database.Collect(ctx, q.core.Pool, scanPoisoned,
			q.core.SQL(`SELECT `+poisonedColumns+` FROM {messages} WHERE id = ? AND group_id = ? AND state = {poisoned}`), row, g.id)
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

// Replay changes the rows in place, many in one statement. No message is lost or doubled, even if it fails.
func (q *poisonQueue) Replay(ctx context.Context, ids ...string) (int, error) {
	return q.each(ctx, "replay", ids, q.core.poison.replay)
}

func (q *poisonQueue) Drop(ctx context.Context, ids ...string) (int, error) {
	return q.each(ctx, "drop", ids, q.core.poison.drop)
}

// Put writes all messages, or none if it returns another error than [driver.ErrNotFound].
func (q *poisonQueue) Put(ctx context.Context, msgs ...driver.PoisonedMessage) (err error) {
	records := make([]publication, len(msgs))
	for i, m := range msgs {
		if err := driver.ValidateTopic(m.Topic()); err != nil {
			return fmt.Errorf("sql: poisoned message %s: %w", driver.MessageID(m.Message), err)
		}
		if records[i], err = newPublication(q.core.Statements, m.Message); err != nil {
			return fmt.Errorf("sql: %w", err)
		}
	}
	there := false
	var missing error
	err = q.do(ctx, "write", func(ctx context.Context, g group) error {
		there = true
		return q.core.Pool.InTx(ctx, func(tx database.Executor) error {
			missing = nil
			last, _, err := database.Number(ctx, tx, q.core.SQL(`SELECT COALESCE(max(id), 0) FROM {messages}`))
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
			return q.core.holds.addSince(ctx, tx, g, last)
		})
	})
	if err == nil && !there {
		return fmt.Errorf("sql: group %q: %w; start its service once, which creates it", q.group, driver.ErrNotFound)
	}
	return errors.Join(err, missing)
}

func (q *poisonQueue) put(ctx context.Context, tx database.Executor, g group, m driver.PoisonedMessage, p publication) (int64, error) {
	if m.ID != "" {
		_, row, err := q.position(m.ID)
		if err != nil {
			return 0, nil //nolint:nilerr // there is no message with an invalid id
		}
		n, err := tx.Exec(ctx, q.core.SQL(`UPDATE {messages} SET lane = ?, topic = ?, uuid = ?, headers = ?, payload = ?
			WHERE id = ? AND group_id = ? AND state = {poisoned}`), p.key, m.Topic(), p.uuid, p.headers, p.payload, row, g.id)
		if n == 0 && err == nil { // MySQL does not count rows whose values did not change
			n, _, err = database.Number(ctx, tx, q.core.SQL(`SELECT count(*) FROM {messages} WHERE id = ? AND group_id = ? AND state = {poisoned}`), row, g.id)
		}
		return n, err
	}
	firstAt := driver.FaultOf(m.Message.Metadata).FirstAt
	if firstAt.IsZero() {
		firstAt = time.Now()
	}
	return tx.Exec(ctx, q.core.SQL(`INSERT INTO {messages} (group_id, state, pos, lane, first_at, topic, uuid, headers, payload)
		VALUES (?, {poisoned}, {now}, ?, ?, ?, ?, ?, ?)`), g.id, p.key, firstAt.UnixMicro(), m.Topic(), p.uuid, p.headers, p.payload)
}

func (q *poisonQueue) Len(ctx context.Context) (n int, err error) {
	err = q.do(ctx, "count", func(ctx context.Context, g group) error {
		count, _, err := database.Number(ctx, q.core.Pool, q.core.SQL(`SELECT count(*) FROM {messages} WHERE group_id = ? AND state = {poisoned}`), g.id)
		n = int(count)
		return err
	})
	return n, err
}

// atOnce is how many messages of a poison queue are changed in one commit.
const atOnce = 250

// each calls change with the messages in batches. It returns how many were changed, and an error for the first id that
// was not found. change returns the ids that it has found, and how many of them it has changed.
func (q *poisonQueue) each(ctx context.Context, what string, ids []string,
	change func(context.Context, lockedGroup, []int64) (found []int64, n int64, err error),
) (done int, missing error) {
	defer func() {
		if done > 0 {
			q.core.waker.group(q.group)
		}
	}()
	for chunk := range slices.Chunk(ids, atOnce) {
		rows := make([]int64, 0, len(chunk))
		for _, id := range chunk {
			if _, row, err := q.position(id); err == nil {
				rows = append(rows, row)
			}
		}
		n, seen := int64(0), make(map[int64]bool) // over all attempts: one may succeed although its connection is lost
		err := q.do(ctx, what, func(ctx context.Context, g group) (err error) {
			if len(rows) == 0 {
				return nil
			}
			var found []int64
			err = q.core.groups.locked(ctx, q.core.Pool, g, func(tx lockedGroup) (err error) {
				found, n, err = change(ctx, tx, rows)
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
		driver.Progress(ctx, int(n))
		for _, id := range chunk {
			if _, row, _ := q.position(id); !seen[row] && missing == nil {
				missing = q.notFound(id)
			}
		}
	}
	return done, missing
}

// do calls f with the group's row if there is one, and retries while the database can't be reached.
func (q *poisonQueue) do(ctx context.Context, what string, f func(context.Context, group) error) error {
	if q.core.leases.isClosed() {
		return driver.ErrClosed
	}
	ctx, cancel := q.core.while(ctx)
	defer cancel()
	err := q.core.Retry(ctx, func(ctx context.Context) error {
		g, ok, err := q.core.groups.find(ctx, q.group)
		if err != nil || !ok {
			return err
		}
		return f(ctx, g)
	})
	if err != nil {
		return failure(fmt.Sprintf("%s poisoned messages of group %q", what, q.group), err)
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

// show returns messages as operators see them.
func (q *poisonQueue) show(ctx context.Context, found []poisoned) ([]driver.PoisonedMessage, error) {
	if len(found) == 0 {
		return nil, nil
	}
	ids := make([]int64, len(found))
	for i, p := range found {
		ids[i] = p.id
	}
	behind, err := q.core.holds.behind(ctx, ids)
	if err != nil {
		return nil, err
	}
	list := make([]driver.PoisonedMessage, len(found))
	for i, p := range found {
		headers, err := decodeHeaders(p.headers)
		if err != nil { // the reason why it was poisoned
			headers = make(message.Metadata)
			q.unreadable(p, err).Record(headers)
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

// unreadable returns the fault of a message whose headers can't be read.
func (q *poisonQueue) unreadable(p poisoned, err error) driver.Fault {
	return driver.NewFault(&driver.Delivery{
		Message: newMessage(p.uuid, nil, p.payload), Topic: p.topic, Group: q.group, Attempt: p.attempt, FirstSeen: time.UnixMicro(p.firstAt),
		History: driver.History{FailedSince: time.UnixMicro(p.pos)},
	}, err)
}
