package sql

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/leatbus/leat/bus/driver"
)

// group is a group's row.
type group struct {
	id    int64
	name  string
	order driver.Order
	park  bool // as this consumer asks; unknown to operators
}

// place is where a message of the group that becomes ready goes.
func (g group) place() string {
	switch g.order {
	case driver.OrderedByKey:
		return "state = CASE WHEN lane = 0 THEN 0 ELSE 4 END, pos = lane"
	case driver.OrderedStrictly:
		return "state = 4, pos = 0"
	default:
		return "state = 0, pos = 0"
	}
}

// misplaced are the conditions on messages that were inserted while the group had another order. The
// index finds each but the first one's: in a group that is ordered by key, all its ready messages are read.
func (g group) misplaced() []string {
	switch g.order {
	case driver.OrderedByKey:
		return []string{"state = 0 AND lane <> 0", "state = 4 AND pos = 0"}
	case driver.OrderedStrictly:
		return []string{"state = 0", "state = 4 AND pos < 0", "state = 4 AND pos > 0"}
	default:
		return []string{"state = 4"}
	}
}

// errDisagree is what consumers of one group answer each other that want different orders.
var errDisagree = errors.New("all its consumers must ask for the same order; stop the others first, or use another group name")

// subscribe makes sure that the group exists with these topics, and registers a consumer of it.
func (s *store) subscribe(ctx context.Context, sub driver.Subscription, owner int64, where string) (g group, err error) {
	err = s.retry(ctx, func(ctx context.Context) error {
		if g, err = s.group(ctx, sub.Group, sub.Order); err != nil {
			return err
		}
		if err := s.addTopics(ctx, g, sub.Topics); err != nil {
			return err
		}
		return s.db.inTx(ctx, func(tx executor) error { return s.join(ctx, tx, g, sub, owner, where) })
	})
	g.order, g.park = sub.Order, sub.Park
	return g, err
}

// group finds or makes the group's row. What is there already is only read: a transaction of the
// user's that publishes may hold locks on it.
func (s *store) group(ctx context.Context, name string, order driver.Order) (group, error) {
	g, ok, err := s.findGroup(ctx, name)
	if ok || err != nil {
		return g, err
	}
	for _, insert := range []struct {
		query string
		args  []any
	}{
		{`INSERT INTO {groups} (name, ordering, created_at) VALUES (?, ?, {now}) ` + s.ignore, []any{name, int(order)}},
		{`INSERT INTO {turns} (group_id, created_at) SELECT id, {now} FROM {groups} WHERE name = ? ` + s.ignore, []any{name}},
	} {
		if _, err := s.db.exec(ctx, s.sql(insert.query), insert.args...); err != nil {
			return g, err
		}
	}
	g, ok, err = s.findGroup(ctx, name)
	if !ok && err == nil {
		err = fmt.Errorf("group %q was dropped while it was made", name)
	}
	return g, err
}

func (s *store) findGroup(ctx context.Context, name string) (g group, ok bool, err error) {
	found, err := collect(ctx, s.db, func(r rows, g *group) error { return r.Scan(&g.id, &g.order) },
		s.sql(`SELECT g.id, g.ordering FROM {groups} g JOIN {turns} t ON t.group_id = g.id WHERE g.name = ?`), name)
	if err != nil || len(found) == 0 {
		return group{}, false, err
	}
	found[0].name = name
	return found[0], true, nil
}

// addTopics adds what is missing. It takes nothing away: while a new release that wants fewer topics
// is rolled out, the old one still wants them all.
func (s *store) addTopics(ctx context.Context, g group, topics []string) error {
	have, err := collect(ctx, s.db, func(r rows, p *string) error { return r.Scan(p) },
		s.sql(`SELECT pattern FROM {subscriptions} WHERE group_id = ?`), g.id)
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
		p := s.store(topic)
		_, err := s.db.exec(ctx, s.sql(`INSERT INTO {subscriptions} (pattern, group_id, depth, matches, created_at) VALUES (?, ?, ?, ?, {now}) `+s.ignore),
			p.pattern, g.id, p.depth, p.matches)
		if err != nil {
			return err
		}
	}
	return nil
}

// join registers the consumer, unless others are there that want another order.
func (s *store) join(ctx context.Context, tx executor, g group, sub driver.Subscription, owner int64, where string) error {
	order := sub.Order
	if err := s.lockTurn(ctx, tx, g); err != nil {
		return err
	}
	others, err := collect(ctx, tx, func(r rows, o *driver.Order) error { return r.Scan(o) },
		s.sql(`SELECT ordering FROM {consumers} WHERE group_id = ? AND expires_at > {now} AND ordering <> ?`), g.id, int(order))
	if err != nil {
		return err
	}
	if len(others) > 0 {
		return fmt.Errorf("group %q is to be %s here, and is %s for its other consumers: %w", g.name, order, others[0], errDisagree)
	}
	changed := g.order != order
	g.order, g.park = order, sub.Park
	if err := s.adjustHolds(ctx, tx, g, changed); err != nil {
		return err
	}
	if changed {
		if _, err := tx.exec(ctx, s.sql(`UPDATE {groups} SET ordering = ? WHERE id = ?`), int(order), g.id); err != nil {
			return err
		}
		if _, err := s.rearrange(ctx, tx, g); err != nil {
			return err
		}
	}
	return s.register(ctx, tx, g, owner, where)
}

// rearrange puts messages where the group's order wants them, and returns how many were elsewhere.
func (s *store) rearrange(ctx context.Context, ex executor, g group) (moved int, err error) {
	for _, misplaced := range g.misplaced() {
		ids, err := numbers(ctx, ex, s.sql(`SELECT id FROM {messages} WHERE group_id = ? AND `+misplaced+` AND owner NOT IN ({live})`), g.id, g.id)
		if err != nil {
			return moved, err
		}
		for some := range slices.Chunk(ids, 1000) {
			query, args := s.withIDs(`UPDATE {messages} SET `+g.place()+` WHERE `+misplaced+` AND id {in}`, some)
			if _, err = ex.exec(ctx, query, args...); err != nil {
				return moved, err
			}
			moved += len(some)
		}
	}
	return moved, nil
}

// lockTurn makes the transaction the only one that claims from the group's lanes.
func (s *store) lockTurn(ctx context.Context, tx executor, g group) error {
	query := `SELECT group_id FROM {turns} WHERE group_id = ? FOR UPDATE`
	switch s.name {
	case Postgres: // a process that hangs in the middle must not hold up the others
		query = `SELECT group_id FROM {turns} WHERE group_id = ? AND set_config('idle_in_transaction_session_timeout', '10s', true) IS NOT NULL FOR UPDATE`
	case SQLite: // there is one writer anyway
		query = `SELECT group_id FROM {turns} WHERE group_id = ?`
	case MySQL:
	}
	_, _, err := number(ctx, tx, s.sql(query), g.id)
	return err
}
