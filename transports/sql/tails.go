package sql

import (
	"context"
	"strings"
	"time"
)

const (
	// tailPrefix begins the names of such groups, which Groups and Topics don't show.
	tailPrefix = "leat-tail."
	// tailAbandoned is how long a tail may be without its consumer before it is taken for dead.
	tailAbandoned = time.Minute
	// tailForgotten is when its last row goes: no transaction of somebody's that has seen it is still open.
	tailForgotten = time.Hour
)

func isTail(group string) bool { return strings.HasPrefix(group, tailPrefix) }

// silence takes a group's subscriptions and messages away. It needs no more rights than a service has.
func (gs groups) silence(ctx context.Context, id int64) error {
	if _, err := gs.pool.exec(ctx, gs.sql(`UPDATE {subscriptions} SET pattern = '', depth = 0, matches = '' WHERE group_id = ? AND pattern <> ''`), id); err != nil {
		return err
	}
	_, err := gs.pool.exec(ctx, gs.sql(`DELETE FROM {messages} WHERE group_id = ?`), id)
	return err
}

// cleanTails clears away what tails have left behind whose process died.
func (gs groups) cleanTails(ctx context.Context) error {
	type row struct {
		id  int64
		old bool
	}
	all, err := collect(ctx, gs.pool, func(r rows, x *row) error { return r.Scan(&x.id, &x.old) }, gs.sql(`
		SELECT id, created_at < {now} - ? FROM {groups} WHERE name LIKE '`+tailPrefix+`%' AND created_at < {now} - ?
		AND id NOT IN (SELECT group_id FROM {consumers} WHERE expires_at > {now})`),
		tailForgotten.Microseconds(), tailAbandoned.Microseconds())
	for _, x := range all {
		if err := gs.silence(ctx, x.id); err != nil {
			return err
		}
		if !x.old {
			continue
		}
		for _, table := range []string{
			`DELETE FROM {subscriptions} WHERE group_id = ?`, `DELETE FROM {turns} WHERE group_id = ?`, `DELETE FROM {groups} WHERE id = ?`,
		} {
			if _, err := gs.pool.exec(ctx, gs.sql(table), x.id); err != nil {
				return nil //nolint:nilerr // a user without the right leaves three rows that do nothing
			}
		}
	}
	return err
}
