package queue

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

var _ driver.Inspector = (*Transport)(nil)

// Groups returns every group with the numbers of its messages, by name. The totals are read from the index alone. Which messages are in
// flight or delayed, and how long the oldest one has waited, is read from the table for the first 50,000 messages of a group in
// each state; in a larger backlog, the others count as waiting. It blocks while the database can't be reached.
func (t *Transport) Groups(ctx context.Context) (all []driver.GroupInfo, err error) {
	err = t.inspect(ctx, "list groups", func(ctx context.Context) error {
		byID, err := inspector{t.core.DB, inspectAtMost}.groups(ctx)
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

// Topics returns the topics and patterns that groups subscribe to, in order. It blocks while the database can't be reached.
func (t *Transport) Topics(ctx context.Context) (all []driver.TopicInfo, err error) {
	groups := make(map[string][]string)
	err = t.inspect(ctx, "list topics", func(ctx context.Context) error {
		clear(groups)
		return inspector{t.core.DB, inspectAtMost}.eachSubscription(ctx, func(group, pattern string) {
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

// inspect calls do, and retries while the database can't be reached.
func (t *Transport) inspect(ctx context.Context, what string, do func(context.Context) error) error {
	if t.core.leases.isClosed() {
		return driver.ErrClosed
	}
	ctx, cancel := t.core.while(ctx)
	defer cancel()
	if err := t.core.Retry(ctx, do); err != nil {
		return failure(what, err)
	}
	return nil
}

// An inspector counts messages for operators.
type inspector struct {
	*database.DB
	limit int // how many rows of a group are read in each state
}

// inspectAtMost is how many rows of each state are read for a group. Claimed messages are the first ones, and there are
// fewer of them than this.
const inspectAtMost = 50_000

// groups returns every group by its id.
func (i inspector) groups(ctx context.Context) (map[int64]*driver.GroupInfo, error) {
	type row struct {
		id   int64
		name string
	}
	rows, err := database.Collect(ctx, i.Pool, func(r database.Rows, g *row) error { return r.Scan(&g.id, &g.name) }, i.SQL(`SELECT id, name FROM {groups}`))
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

// eachSubscription calls visit for every subscription, in the order of the patterns.
func (i inspector) eachSubscription(ctx context.Context, visit func(group, pattern string)) error {
	type row struct{ group, pattern string }
	all, err := database.Collect(ctx, i.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.group, &x.pattern) },
		i.SQL(`SELECT g.name, s.pattern FROM {subscriptions} s JOIN {groups} g ON g.id = s.group_id ORDER BY s.pattern`))
	for _, x := range all {
		visit(x.group, x.pattern)
	}
	return err
}

func (i inspector) countConsumers(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	type row struct{ group, n int64 }
	all, err := database.Collect(ctx, i.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.group, &x.n) },
		i.SQL(`SELECT group_id, count(*) FROM {consumers} WHERE expires_at > {now} GROUP BY group_id`))
	for _, x := range all {
		if g := groups[x.group]; g != nil {
			g.Consumers = int(x.n)
		}
	}
	return err
}

// A stateCount is the number of a group's messages in one state.
type stateCount struct {
	group, n, oldest int64
	state            database.State
	taken, later     bool
}

func (i inspector) countMessages(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	counts, err := database.Collect(ctx, i.Pool, func(r database.Rows, x *stateCount) error { return r.Scan(&x.group, &x.state, &x.n) }, i.SQL(countByState))
	if err != nil {
		return err
	}
	totals := make(map[int64][]stateCount)
	for _, x := range counts {
		if groups[x.group] != nil {
			totals[x.group] = append(totals[x.group], x)
		}
	}
	atOnce := 1
	if i.Name == sqlconfig.Postgres {
		atOnce = groupsAtOnce
	}
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(totals)), atOnce) {
		if err := i.countSome(ctx, ids, groups, totals); err != nil {
			return err
		}
	}
	return i.countHeldBack(ctx, groups)
}

// groupsAtOnce is how many groups one statement reads on PostgreSQL, whose statement is the same for any number. The other
// databases have no lateral join, or not in all versions that leat supports. (A UNION ALL of the selects of a hundred groups took
// PostgreSQL twice as long as a statement for each group.)
const groupsAtOnce = 100

// countByState reads the index alone.
const countByState = `SELECT group_id, state, count(*) FROM {messages} GROUP BY group_id, state`

// countSome counts the messages of some groups in one statement, which sees one snapshot, and adds those beyond the limit by their totals.
func (i inspector) countSome(ctx context.Context, ids []int64, groups map[int64]*driver.GroupInfo, totals map[int64][]stateCount) error {
	var parts []part
	for _, id := range ids {
		for _, x := range totals[id] {
			if x.state == database.StatePoisoned || x.state == database.StateHandled {
				x.enter(groups[id])
				continue
			}
			parts = append(parts, part{id, x.state})
		}
	}
	if len(parts) == 0 {
		return nil
	}
	front, args := i.front(parts)
	read, err := database.Collect(ctx, i.Pool, func(r database.Rows, x *stateCount) error {
		return r.Scan(&x.group, &x.state, &x.taken, &x.later, &x.n, &x.oldest)
	}, i.Complete(`SELECT group_id, state, taken, later, count(*), min(first_at) FROM (
		SELECT m.group_id, m.state, m.first_at, m.due_at > {now} AS later, c.id IS NOT NULL AS taken
		FROM (`+front+`) m LEFT JOIN {consumers} c ON c.id = m.owner AND c.expires_at > {now}
	) t GROUP BY group_id, state, taken, later`), args...)
	if err != nil {
		return err
	}
	seen := make(map[part]int64)
	for _, x := range read {
		seen[part{x.group, x.state}] += x.n
		x.enter(groups[x.group])
	}
	for _, id := range ids {
		for _, x := range totals[id] {
			if n := seen[part{id, x.state}]; n >= int64(i.limit) && x.n > n {
				stateCount{state: x.state, n: x.n - n, taken: x.state == database.StateKeyHead}.enter(groups[id])
			}
		}
	}
	return nil
}

// part identifies the messages of a group in one state.
type part struct {
	group int64
	state database.State
}

// front returns a query for the first rows of each part, and its arguments.
func (i inspector) front(parts []part) (query string, args []any) {
	const columns = `SELECT group_id, state, first_at, due_at, owner FROM {messages} `
	if i.Name == sqlconfig.Postgres {
		groups, states := make([]int64, len(parts)), make([]int64, len(parts))
		for n, p := range parts {
			groups[n], states[n] = p.group, int64(p.state)
		}
		return `SELECT f.* FROM unnest(?::bigint[], ?::bigint[]) AS p(group_id, state) CROSS JOIN LATERAL (` + columns + `
			WHERE group_id = p.group_id::integer AND state = p.state::smallint ORDER BY group_id, state, pos, id LIMIT ?) f`, []any{groups, states, i.limit}
	}
	selects := make([]string, len(parts))
	for n, p := range parts {
		selects[n] = `SELECT * FROM (` + columns + `{force} WHERE group_id = ? AND state = ? ORDER BY group_id, state, pos, id LIMIT ?) s` + strconv.Itoa(n)
		args = append(args, p.group, int(p.state), i.limit)
	}
	return strings.Join(selects, " UNION ALL "), args
}

// countHeldBack counts the keys that poisoned messages hold back. It also counts as parked the messages behind these that are not yet
// in the state parked.
func (i inspector) countHeldBack(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	type row struct{ group, keys, n int64 }
	all, err := database.Collect(ctx, i.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.group, &x.keys, &x.n) }, i.SQL(`
		SELECT h.group_id, count(DISTINCT h.pos), count(m.id) FROM (SELECT group_id, pos, min(message_id) AS first FROM {holds} GROUP BY group_id, pos) h
		LEFT JOIN {messages} m ON m.group_id = h.group_id AND m.state = {keyed} AND m.pos = h.pos AND m.id > h.first GROUP BY h.group_id`))
	for _, x := range all {
		if g := groups[x.group]; g != nil {
			g.ParkedKeys = int(x.keys)
			g.Parked += int(x.n)
			g.Waiting = max(g.Waiting-int(x.n), 0)
		}
	}
	return err
}

// enter adds a count to its group. Messages of a consumer whose lease has expired count as waiting.
func (x stateCount) enter(g *driver.GroupInfo) {
	n := int(x.n)
	switch {
	case x.state == database.StatePoisoned:
		g.Poisoned += n
		return
	case x.state == database.StateHandled:
		return
	case x.state == database.StateParked:
		g.Parked += n
	case x.taken:
		g.InFlight += n
	case x.state == database.StateDelayed, x.later:
		g.Delayed += n
	default:
		g.Waiting += n
	}
	if oldest := time.UnixMicro(x.oldest); x.oldest != 0 && (g.Oldest.IsZero() || oldest.Before(g.Oldest)) {
		g.Oldest = oldest
	}
}
