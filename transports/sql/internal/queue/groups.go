package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// errDisagree is returned to a consumer whose order differs from that of the others of its group.
var errDisagree = errors.New("all its consumers must ask for the same order; stop the others first, or use another group name")

// groups reads and writes the rows of groups and of their subscriptions.
type groups struct {
	*database.DB
	holds     holds
	consumers consumers
}

// subscribe creates the group if it does not exist, adds its topics, and registers a consumer.
func (gs groups) subscribe(ctx context.Context, sub driver.Subscription, owner int64) (g group, err error) {
	err = gs.Retry(ctx, func(ctx context.Context) error {
		g, err = gs.trySubscribe(ctx, sub, owner)
		for errors.Is(err, errRemoved) { // by an operator, after its row was found
			g, err = gs.trySubscribe(ctx, sub, owner)
		}
		return err
	})
	g.order, g.park = sub.Order, sub.Park
	return g, err
}

func (gs groups) trySubscribe(ctx context.Context, sub driver.Subscription, owner int64) (g group, err error) {
	if g, err = gs.ensure(ctx, sub.Group, sub.Order); err != nil {
		return g, err
	}
	if err := gs.addTopics(ctx, g, sub.Topics); err != nil {
		return g, err
	}
	return g, gs.locked(ctx, gs.Pool, g, func(tx lockedGroup) error {
		if err := gs.join(ctx, tx, sub, owner); err != nil {
			return err
		}
		tx.group.order = sub.Order
		return raiseFence(ctx, gs.DB, &tx)
	})
}

// ensure finds or creates the group's row. An existing row is only read, because a user's transaction that publishes may have it
// locked.
func (gs groups) ensure(ctx context.Context, name string, order driver.Order) (group, error) {
	g, ok, err := gs.find(ctx, name)
	if ok || err != nil {
		return g, err
	}
	for _, insert := range []struct {
		query string
		args  []any
	}{
		{`INSERT INTO {groups} (name, ordering, created_at) VALUES (?, ?, {now}) ` + gs.Ignore, []any{name, int(order)}},
		{`INSERT INTO {turns} (group_id, created_at) SELECT id, {now} FROM {groups} WHERE name = ? ` + gs.Ignore, []any{name}},
	} {
		if _, err := gs.Pool.Exec(ctx, gs.SQL(insert.query), insert.args...); err != nil {
			return g, err
		}
	}
	g, ok, err = gs.find(ctx, name)
	if !ok && err == nil {
		err = fmt.Errorf("group %q was deleted while it was created", name)
	}
	return g, err
}

func (gs groups) find(ctx context.Context, name string) (g group, ok bool, err error) {
	found, err := database.Collect(ctx, gs.Pool, func(r database.Rows, g *group) error { return r.Scan(&g.id, &g.order) },
		gs.SQL(`SELECT g.id, g.ordering FROM {groups} g JOIN {turns} t ON t.group_id = g.id WHERE g.name = ?`), name)
	if err != nil || len(found) == 0 {
		return group{}, false, err
	}
	found[0].name = name
	return found[0], true, nil
}

// addTopics adds missing topics. It removes none: while a release with fewer topics is rolled out, the old one still needs all.
func (gs groups) addTopics(ctx context.Context, g group, topics []string) error {
	have, err := gs.topics(ctx, g)
	if err != nil {
		return err
	}
	for _, topic := range topics {
		if slices.Contains(have, topic) {
			continue
		}
		p := storedPattern(gs.Name, topic)
		_, err := gs.Pool.Exec(ctx, gs.SQL(`INSERT INTO {subscriptions} (pattern, group_id, depth, matches, created_at) VALUES (?, ?, ?, ?, {now}) `+gs.Ignore),
			p.pattern, g.id, p.depth, p.matches)
		if err != nil {
			return err
		}
	}
	return nil
}

func (gs groups) topics(ctx context.Context, g group) ([]string, error) {
	return database.Collect(ctx, gs.Pool, func(r database.Rows, p *string) error { return r.Scan(p) },
		gs.SQL(`SELECT pattern FROM {subscriptions} WHERE group_id = ? ORDER BY pattern`), g.id)
}

// join registers the consumer. It returns an error if the group has consumers with another order.
func (gs groups) join(ctx context.Context, tx lockedGroup, sub driver.Subscription, owner int64) error {
	g, order := tx.group, sub.Order
	others, err := database.Collect(ctx, tx, func(r database.Rows, o *driver.Order) error { return r.Scan(o) },
		gs.SQL(`SELECT ordering FROM {consumers} WHERE group_id = ? AND expires_at > {now} AND ordering <> ?`), g.id, int(order))
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return fmt.Errorf("group %q: this consumer's order is %s, and that of the others is %s: %w", g.name, order, others[0], errDisagree)
	}
	changed := g.order != order
	g.order, g.park = order, sub.Park
	if err := gs.holds.adjust(ctx, lockedGroup{tx.Executor, g, tx.fence}, changed); err != nil {
		return err
	}
	if changed {
		if _, err := tx.Exec(ctx, gs.SQL(`UPDATE {groups} SET ordering = ? WHERE id = ?`), int(order), g.id); err != nil {
			return err
		}
		if err := markReturns(ctx, gs.DB, tx, g); err != nil {
			return err
		}
		if _, err := gs.rearrange(ctx, tx, g, func(f func(database.Executor) error) error { return f(tx) }); err != nil {
			return err
		}
	}
	return gs.consumers.register(ctx, tx, g, owner, subscriberOf(sub))
}

// rearrange changes the states of messages to those for the group's order, and returns how many it has changed. It changes them in
// several calls of change.
func (gs groups) rearrange(ctx context.Context, ex database.Executor, g group, change func(func(database.Executor) error) error) (moved int, err error) {
	for _, misplaced := range g.misplacedConditions() {
		ids, err := database.Numbers(ctx, ex, gs.SQL(`SELECT id FROM {messages} WHERE group_id = ? AND `+misplaced+` AND owner NOT IN ({live})`), g.id, g.id)
		if err != nil {
			return moved, err
		}
		for some := range slices.Chunk(ids, 1000) {
			query, args := gs.WithIDs(`UPDATE {messages} SET `+g.readyColumns()+` WHERE `+misplaced+` AND id {in}`, some)
			err := change(func(ex database.Executor) error {
				_, err := ex.Exec(ctx, query, args...)
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

// raiseFence increments the fencing number of an ordered group: a consumer joins, or messages are taken from one that may not have
// noticed that its lease expired.
func raiseFence(ctx context.Context, d *database.DB, tx *lockedGroup) error {
	if !d.Fenced || tx.group.order == driver.Unordered {
		return nil
	}
	tx.fence++
	_, err := tx.Exec(ctx, d.SQL(`UPDATE {turns} SET fence = fence + 1 WHERE group_id = ?`), tx.group.id)
	return err
}

// fenceColumn returns the expression for the group's fencing number in {turns}.
func fenceColumn(d *database.DB) string {
	if d.Fenced {
		return "fence"
	}
	return "0"
}

// locked locks the group in a transaction and calls f.
func (gs groups) locked(ctx context.Context, over database.Pool, g group, f func(lockedGroup) error) error {
	return over.InTx(ctx, func(tx database.Executor) error {
		fence, err := gs.lock(ctx, tx, g)
		if err != nil {
			return err
		}
		return f(lockedGroup{tx, g, fence})
	})
}

// lock locks the group's row in {turns}, and returns the group's fencing number, or errRemoved. Only a transaction that has this lock
// claims from the group's key queues or changes its holds. A transaction locks at most one group, and locks it before any message.
func (gs groups) lock(ctx context.Context, tx database.Executor, g group) (fence int64, err error) {
	query := `SELECT ` + fenceColumn(gs.DB) + ` FROM {turns} WHERE group_id = ?`
	switch gs.Name {
	case sqlconfig.Postgres: // a process that hangs in the transaction must not block the others
		query += ` AND set_config('idle_in_transaction_session_timeout', '10s', true) IS NOT NULL FOR UPDATE`
	case sqlconfig.SQLite: // there is one writer anyway
	case sqlconfig.MySQL:
		query += ` FOR UPDATE`
	}
	fence, there, err := database.Number(ctx, tx, gs.SQL(query), g.id)
	if err == nil && !there {
		err = errRemoved
	}
	return fence, err
}
