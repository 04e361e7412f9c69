package queue

import (
	"context"
	"errors"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// poison moves messages to the poison queue, and back.
type poison struct {
	*database.DB
	groups groups
	holds  holds
}

// errLost is returned if another consumer has claimed the message.
var errLost = errors.New("its lease has expired, and another consumer has claimed it")

// set poisons one message of the owner. It may be called again if the connection was lost.
func (p poison) set(ctx context.Context, g group, owner, id int64, headers []byte) error {
	if !g.park {
		return p.move(ctx, p.Pool, owner, id, headers)
	}
	return p.Pool.InTx(ctx, func(tx database.Executor) error {
		if err := p.move(ctx, tx, owner, id, headers); err != nil {
			return err
		}
		return p.holds.add(ctx, tx, g, id)
	})
}

func (p poison) move(ctx context.Context, ex database.Executor, owner, id int64, headers []byte) error {
	n, err := ex.Exec(ctx, p.SQL(`UPDATE {messages} SET state = {poisoned}, pos = {now}, owner = 0, headers = ? WHERE owner = ? AND id = ?`),
		headers, owner, id)
	if err != nil || n == 1 {
		return err
	}
	_, there, err := database.Number(ctx, ex, p.SQL(`SELECT id FROM {messages} WHERE id = ? AND state = {poisoned}`), id)
	if err == nil && !there {
		err = errLost
	}
	return err
}

// replay makes poisoned messages ready, as they were before their first delivery. It returns the ids that it
// found, and how many messages it changed.
func (p poison) replay(ctx context.Context, tx lockedGroup, ids []int64) (found []int64, n int64, err error) {
	g := tx.group
	type row struct {
		id      int64
		headers []byte
	}
	query, args := p.WithIDs(`SELECT id, headers FROM {messages} WHERE group_id = ? AND state = {poisoned} AND id {in}`, ids, g.id)
	rows, err := database.Collect(ctx, tx, func(r database.Rows, x *row) error { return r.Scan(&x.id, &x.headers) }, query, args...)
	if err != nil || len(rows) == 0 {
		return nil, 0, err
	}
	fresh := make([]any, 0, 2*len(rows)+1)
	for _, x := range rows {
		if headers, err := decodeHeaders(x.headers); err == nil { // otherwise the headers stay, and the message is poisoned again
			driver.ClearFault(headers)
			x.headers = encodeHeaders(headers, p.JSON)
		}
		found = append(found, x.id)
		fresh = append(fresh, x.id, x.headers)
	}
	query, args = p.WithIDs(`UPDATE {messages} SET `+g.readyColumns()+`, attempt = 0, due_at = 0, headers = CASE id`+
		strings.Repeat(whenHeaders(p.Name), len(rows))+` END WHERE group_id = ? AND state = {poisoned} AND id {in}`, found, append(fresh, g.id)...)
	if n, err = tx.Exec(ctx, query, args...); err != nil {
		return nil, 0, err
	}
	if err := markReturns(ctx, p.DB, tx, g); err != nil {
		return nil, 0, err
	}
	return found, n, p.holds.release(ctx, tx, found)
}

// drop deletes poisoned messages. It returns the ids that it found, and how many messages it deleted.
func (p poison) drop(ctx context.Context, tx lockedGroup, ids []int64) (found []int64, n int64, err error) {
	g := tx.group
	query, args := p.WithIDs(`SELECT id FROM {messages} WHERE group_id = ? AND state = {poisoned} AND id {in}`, ids, g.id)
	if found, err = database.Numbers(ctx, tx, query, args...); err != nil || len(found) == 0 {
		return nil, 0, err
	}
	query, args = p.WithIDs(`DELETE FROM {messages} WHERE group_id = ? AND state = {poisoned} AND id {in}`, found, g.id)
	if n, err = tx.Exec(ctx, query, args...); err != nil {
		return nil, 0, err
	}
	return found, n, p.holds.release(ctx, tx, found)
}
