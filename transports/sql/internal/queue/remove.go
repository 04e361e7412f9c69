package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

var _ driver.GroupRemover = (*Transport)(nil)

// errRemoved is returned if a group's row is gone.
var errRemoved = errors.New("the group was deleted by an operator; a process that consumes it must be restarted to create it anew")

// RemoveGroup implements [driver.GroupRemover] in one transaction. Its user needs the right to delete from the tables groups,
// subscriptions and turns, which services do not need. It returns an error for an outbox, which is no group of a handler.
//
// A transaction that published to the group and commits only after the removal may leave messages in the table. No group gets
// them, and nothing shows them.
func (t *Transport) RemoveGroup(ctx context.Context, name string) error {
	var tried group // its transaction may have been committed although an error was returned
	return t.inspect(ctx, "remove group "+name, func(ctx context.Context) error {
		g, there, err := t.core.groups.find(ctx, name)
		switch {
		case err != nil:
			return err
		case !there && tried.id != 0:
			return t.core.groups.deleteMessages(ctx, tried)
		case !there, isTail(name):
			return driver.ErrNotFound
		}
		tried = g
		return t.core.groups.remove(ctx, g)
	})
}

// OutboxHandler is the part of an outbox's group that is a handler's name in other groups.
const OutboxHandler = "outbox"

// remove deletes the group's rows in all tables. The group is locked, so no consumer can join it meanwhile.
func (gs groups) remove(ctx context.Context, g group) error {
	err := gs.locked(ctx, gs.Pool, g, func(tx lockedGroup) error {
		if strings.HasSuffix(g.name, "."+OutboxHandler) {
			topics, _, err := database.Number(ctx, tx, gs.SQL(`SELECT count(*) FROM {subscriptions} WHERE group_id = ?`), g.id)
			if err != nil {
				return err
			}
			if topics == 0 {
				return fmt.Errorf("%q is an outbox, and no group of a handler", g.name)
			}
		}
		live, _, err := database.Number(ctx, tx, gs.SQL(`SELECT count(*) FROM {consumers} WHERE group_id = ? AND expires_at > {now}`), g.id)
		if err != nil {
			return err
		}
		if live > 0 {
			return driver.ErrConsumed
		}
		for _, query := range []string{
			`DELETE FROM {subscriptions} WHERE group_id = ?`, // first, so that publishers find the group no more
			`DELETE FROM {groups} WHERE id = ?`,
			`DELETE FROM {holds} WHERE group_id = ?`,
			deleteMessages,
			`DELETE FROM {consumers} WHERE group_id = ?`,
			`DELETE FROM {turns} WHERE group_id = ?`,
		} {
			if _, err := tx.Exec(ctx, gs.SQL(query), g.id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return gs.deleteMessages(ctx, g) // from publishers that had found the group before
}

func (gs groups) deleteMessages(ctx context.Context, g group) error {
	_, err := gs.Pool.Exec(ctx, gs.SQL(deleteMessages), g.id)
	return err
}

const deleteMessages = `DELETE FROM {messages} WHERE group_id = ?`
