package sql

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/leatbus/leat/bus/driver"
)

// errDisagree is for a consumer that asks for another order than the others of its group.
var errDisagree = errors.New("all its consumers must ask for the same order; stop the others first, or use another group name")

// groups are the rows of groups and of their subscriptions.
type groups struct {
	*database
	holds     holds
	consumers consumers
}

// subscribe makes sure that the group exists with these topics, and registers a consumer of it.
func (gs groups) subscribe(ctx context.Context, sub driver.Subscription, owner int64) (g group, err error) {
	err = gs.retry(ctx, func(ctx context.Context) error {
		if g, err = gs.ensure(ctx, sub.Group, sub.Order); err != nil {
			return err
		}
		if err := gs.addTopics(ctx, g, sub.Topics); err != nil {
			return err
		}
		return gs.locked(ctx, gs.pool, g, func(tx lockedGroup) error { return gs.join(ctx, tx, sub, owner) })
	})
	g.order, g.park = sub.Order, sub.Park
	return g, err
}

// ensure finds or makes the group's row. What is there already is only read: a transaction of the
// user's that publishes may hold locks on it.
func (gs groups) ensure(ctx context.Context, name string, order driver.Order) (group, error) {
	g, ok, err := gs.find(ctx, name)
	if ok || err != nil {
		return g, err
	}
	for _, insert := range []struct {
		query string
		args  []any
	}{
		{`INSERT INTO {groups} (name, ordering, created_at) VALUES (?, ?, {now}) ` + gs.ignore, []any{name, int(order)}},
		{`INSERT INTO {turns} (group_id, created_at) SELECT id, {now} FROM {groups} WHERE name = ? ` + gs.ignore, []any{name}},
	} {
		if _, err := gs.pool.exec(ctx, gs.sql(insert.query), insert.args...); err != nil {
			return g, err
		}
	}
	g, ok, err = gs.find(ctx, name)
	if !ok && err == nil {
		err = fmt.Errorf("group %q was dropped while it was made", name)
	}
	return g, err
}

func (gs groups) find(ctx context.Context, name string) (g group, ok bool, err error) {
	found, err := collect(ctx, gs.pool, func(r rows, g *group) error { return r.Scan(&g.id, &g.order) },
		gs.sql(`SELECT g.id, g.ordering FROM {groups} g JOIN {turns} t ON t.group_id = g.id WHERE g.name = ?`), name)
	if err != nil || len(found) == 0 {
		return group{}, false, err
	}
	found[0].name = name
	return found[0], true, nil
}

// addTopics adds what is missing. It takes nothing away: while a new release that wants fewer topics
// is rolled out, the old one still wants them all.
func (gs groups) addTopics(ctx context.Context, g group, topics []string) error {
	have, err := collect(ctx, gs.pool, func(r rows, p *string) error { return r.Scan(p) },
		gs.sql(`SELECT pattern FROM {subscriptions} WHERE group_id = ?`), g.id)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(have))
	for _, p := range have {
		there[p] = true
	}
	for _, topic := range topics {
		if there[topic] {
			continue
		}
		p := gs.row(topic)
		_, err := gs.pool.exec(ctx, gs.sql(`INSERT INTO {subscriptions} (pattern, group_id, depth, matches, created_at) VALUES (?, ?, ?, ?, {now}) `+gs.ignore),
			p.pattern, g.id, p.depth, p.matches)
		if err != nil {
			return err
		}
	}
	return nil
}

// join registers the consumer, unless others are there that want another order.
func (gs groups) join(ctx context.Context, tx lockedGroup, sub driver.Subscription, owner int64) error {
	g, order := tx.group, sub.Order
	others, err := collect(ctx, tx, func(r rows, o *driver.Order) error { return r.Scan(o) },
		gs.sql(`SELECT ordering FROM {consumers} WHERE group_id = ? AND expires_at > {now} AND ordering <> ?`), g.id, int(order))
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return fmt.Errorf("group %q is to be %s here, and is %s for its other consumers: %w", g.name, order, others[0], errDisagree)
	}
	changed := g.order != order
	g.order, g.park = order, sub.Park
	if err := gs.holds.adjust(ctx, lockedGroup{tx.executor, g}, changed); err != nil {
		return err
	}
	if changed {
		if _, err := tx.exec(ctx, gs.sql(`UPDATE {groups} SET ordering = ? WHERE id = ?`), int(order), g.id); err != nil {
			return err
		}
		if err := gs.noteReturns(ctx, tx, g); err != nil {
			return err
		}
		if _, err := gs.rearrange(ctx, tx, g, func(f func(executor) error) error { return f(tx) }); err != nil {
			return err
		}
	}
	return gs.consumers.register(ctx, tx, g, owner)
}

// rearrange puts messages where the group's order wants them, and returns how many were elsewhere. It changes them
// within change, some at a time.
func (gs groups) rearrange(ctx context.Context, ex executor, g group, change func(func(executor) error) error) (moved int, err error) {
	for _, misplaced := range g.misplaced() {
		ids, err := numbers(ctx, ex, gs.sql(`SELECT id FROM {messages} WHERE group_id = ? AND `+misplaced+` AND owner NOT IN ({live})`), g.id, g.id)
		if err != nil {
			return moved, err
		}
		for some := range slices.Chunk(ids, 1000) {
			query, args := gs.withIDs(`UPDATE {messages} SET `+g.place()+` WHERE `+misplaced+` AND id {in}`, some)
			err := change(func(ex executor) error {
				_, err := ex.exec(ctx, query, args...)
				return err
			})
			if err != nil {
				return moved, err
			}
			moved += len(some)
		}
	}
	return moved, nil
}

// locked runs f in a transaction that has locked the group.
func (gs groups) locked(ctx context.Context, over pool, g group, f func(lockedGroup) error) error {
	return over.inTx(ctx, func(tx executor) error {
		if err := gs.lock(ctx, tx, g); err != nil {
			return err
		}
		return f(lockedGroup{tx, g})
	})
}

// lock makes the transaction the only one that claims from the group's key queues, or that changes its holds. It
// is the group's row in {turns}. A transaction locks one group, and locks it before any message.
func (gs groups) lock(ctx context.Context, tx executor, g group) error {
	query := `SELECT group_id FROM {turns} WHERE group_id = ? FOR UPDATE`
	switch gs.name {
	case Postgres: // a process that hangs in the middle must not hold up the others
		query = `SELECT group_id FROM {turns} WHERE group_id = ? AND set_config('idle_in_transaction_session_timeout', '10s', true) IS NOT NULL FOR UPDATE`
	case SQLite: // there is one writer anyway
		query = `SELECT group_id FROM {turns} WHERE group_id = ?`
	case MySQL:
	}
	_, _, err := number(ctx, tx, gs.sql(query), g.id)
	return err
}
