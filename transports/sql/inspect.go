package sql

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.Inspector = (*Transport)(nil)

// Groups counts the messages of every group, all at one moment for each table. It reads the whole index
// of messages: half a second for a million.
func (t *Transport) Groups(ctx context.Context) (all []driver.GroupInfo, err error) {
	err = t.inspect(ctx, "list groups", func(ctx context.Context) error {
		byID, err := inspector{t.database}.groups(ctx)
		if err != nil {
			return err
		}
		all = nil
		for _, g := range byID {
			if !isTail(g.Name) {
				all = append(all, *g)
			}
		}
		slices.SortFunc(all, func(a, b driver.GroupInfo) int { return cmp.Compare(a.Name, b.Name) })
		return nil
	})
	return all, err
}

// Topics returns the topics and patterns that groups have asked for.
func (t *Transport) Topics(ctx context.Context) (all []driver.TopicInfo, err error) {
	groups := make(map[string][]string)
	err = t.inspect(ctx, "list topics", func(ctx context.Context) error {
		clear(groups)
		return inspector{t.database}.eachSubscription(ctx, func(group, pattern string) {
			if !isTail(group) {
				groups[pattern] = append(groups[pattern], group)
			}
		})
	})
	for _, topic := range slices.Sorted(maps.Keys(groups)) {
		slices.Sort(groups[topic])
		all = append(all, driver.TopicInfo{Topic: topic, Groups: groups[topic]})
	}
	return all, err
}

// inspect does something for an operator, and again while the database is away.
func (t *Transport) inspect(ctx context.Context, what string, do func(context.Context) error) error {
	if t.leases.isClosed() {
		return driver.ErrClosed
	}
	ctx, cancel := t.while(ctx)
	defer cancel()
	if err := t.retry(ctx, do); err != nil {
		return failure(what, err)
	}
	return nil
}

// inspector counts for operators.
type inspector struct{ *database }

// groups returns every group by its id.
func (i inspector) groups(ctx context.Context) (map[int64]*driver.GroupInfo, error) {
	type row struct {
		id   int64
		name string
	}
	rows, err := collect(ctx, i.pool, func(r rows, g *row) error { return r.Scan(&g.id, &g.name) }, i.sql(`SELECT id, name FROM {groups}`))
	if err != nil {
		return nil, err
	}
	groups, byName := make(map[int64]*driver.GroupInfo, len(rows)), make(map[string]*driver.GroupInfo, len(rows))
	for _, r := range rows {
		g := &driver.GroupInfo{Name: r.name}
		groups[r.id], byName[r.name] = g, g
	}
	err = i.eachSubscription(ctx, func(group, pattern string) {
		if g := byName[group]; g != nil {
			g.Topics = append(g.Topics, pattern)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := i.countConsumers(ctx, groups); err != nil {
		return nil, err
	}
	return groups, i.countMessages(ctx, groups)
}

// eachSubscription calls visit in the order of the patterns.
func (i inspector) eachSubscription(ctx context.Context, visit func(group, pattern string)) error {
	type row struct{ group, pattern string }
	all, err := collect(ctx, i.pool, func(r rows, x *row) error { return r.Scan(&x.group, &x.pattern) },
		i.sql(`SELECT g.name, s.pattern FROM {subscriptions} s JOIN {groups} g ON g.id = s.group_id ORDER BY s.pattern`))
	for _, x := range all {
		visit(x.group, x.pattern)
	}
	return err
}

func (i inspector) countConsumers(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	type row struct{ group, n int64 }
	all, err := collect(ctx, i.pool, func(r rows, x *row) error { return r.Scan(&x.group, &x.n) },
		i.sql(`SELECT group_id, count(*) FROM {consumers} WHERE expires_at > {now} GROUP BY group_id`))
	for _, x := range all {
		if g := groups[x.group]; g != nil {
			g.Consumers = int(x.n)
		}
	}
	return err
}

// stateCount is how many messages of a group are in one state.
type stateCount struct {
	group, n, oldest int64
	state            state
	taken, later     bool
}

func (i inspector) countMessages(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	counts, err := collect(ctx, i.pool, func(r rows, x *stateCount) error {
		return r.Scan(&x.group, &x.state, &x.taken, &x.later, &x.n, &x.oldest)
	}, i.sql(`
		SELECT group_id, state, taken, later, count(*), min(first_at) FROM (
			SELECT m.group_id, m.state, m.first_at, m.due_at > {now} AS later, c.id IS NOT NULL AS taken
			FROM {messages} m LEFT JOIN {consumers} c ON c.id = m.owner AND c.expires_at > {now}
		) t GROUP BY group_id, state, taken, later`))
	for _, x := range counts {
		if g := groups[x.group]; g != nil {
			x.enter(g)
		}
	}
	if err != nil {
		return err
	}
	return i.countHeldBack(ctx, groups)
}

// countHeldBack enters as parked what waits behind poisoned messages and has not been moved out of the
// claims' way.
func (i inspector) countHeldBack(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	type row struct{ group, n int64 }
	all, err := collect(ctx, i.pool, func(r rows, x *row) error { return r.Scan(&x.group, &x.n) }, i.sql(`
		SELECT h.group_id, count(*) FROM (SELECT group_id, pos, min(message_id) AS first FROM {holds} GROUP BY group_id, pos) h
		JOIN {messages} m ON m.group_id = h.group_id AND m.state = {keyed} AND m.pos = h.pos AND m.id > h.first GROUP BY h.group_id`))
	for _, x := range all {
		if g := groups[x.group]; g != nil {
			g.Parked += int(x.n)
			g.Waiting = max(g.Waiting-int(x.n), 0)
		}
	}
	return err
}

// enter adds a count to its group. What the consumer had that died waits again.
func (x stateCount) enter(g *driver.GroupInfo) {
	n := int(x.n)
	switch {
	case x.state == statePoisoned:
		g.Poisoned += n
		return
	case x.state == stateHandled:
		return
	case x.state == stateParked:
		g.Parked += n
	case x.taken:
		g.InFlight += n
	case x.state == stateDelayed, x.later:
		g.Delayed += n
	default:
		g.Waiting += n
	}
	if oldest := time.UnixMicro(x.oldest); g.Oldest.IsZero() || oldest.Before(g.Oldest) {
		g.Oldest = oldest
	}
}
