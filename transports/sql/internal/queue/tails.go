package queue

import (
	"context"
	"strings"
	"time"

	"github.com/leatbus/leat/transports/sql/internal/database"
)

const (
	// tailPrefix is the prefix of the names of tails' groups, which Groups and Topics don't return.
	tailPrefix = "leat-tail."
	// tailAbandoned is the age from which a tail without a consumer is removed.
	tailAbandoned = time.Minute
	// tailForgotten is the age from which its rows are deleted. By then, no transaction that has read them is open.
	tailForgotten = time.Hour
)

func isTail(group string) bool { return strings.HasPrefix(group, tailPrefix) }

// silence removes a group's subscriptions and messages. It changes the rows of subscriptions instead of deleting them, for which a
// service needs no right.
func (gs groups) silence(ctx context.Context, id int64) error {
	if _, err := gs.Pool.Exec(ctx, gs.SQL(`UPDATE {subscriptions} SET pattern = '', depth = 0, matches = '' WHERE group_id = ? AND pattern <> ''`), id); err != nil {
		return err
	}
	_, err := gs.Pool.Exec(ctx, gs.SQL(`DELETE FROM {messages} WHERE group_id = ?`), id)
	return err
}

// cleanTails removes the tails of processes that died.
func (gs groups) cleanTails(ctx context.Context) error {
	type row struct {
		id   int64
		name string
		old  bool
	}
	all, err := database.Collect(ctx, gs.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.id, &x.name, &x.old) }, gs.SQL(`
		SELECT id, name, created_at < {now} - ? FROM {groups} WHERE name LIKE '`+tailPrefix+`%' AND created_at < {now} - ?
		AND id NOT IN (SELECT group_id FROM {consumers} WHERE expires_at > {now})`),
		tailForgotten.Microseconds(), tailAbandoned.Microseconds())
	for _, x := range all {
		if !isTail(x.name) { // SQLite's LIKE ignores case
			continue
		}
		if err := gs.silence(ctx, x.id); err != nil {
			return err
		}
		if !x.old {
			continue
		}
		for _, table := range []string{
			`DELETE FROM {subscriptions} WHERE group_id = ?`, `DELETE FROM {turns} WHERE group_id = ?`, `DELETE FROM {groups} WHERE id = ?`,
		} {
			if _, err := gs.Pool.Exec(ctx, gs.SQL(table), x.id); err != nil {
				return nil //nolint:nilerr // without the right to delete, three rows are left that have no effect
			}
		}
	}
	return err
}
