package sql

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.Inspector = (*Transport)(nil)

// Groups counts the messages of every group, all at one moment for each table. It reads the whole index
// of messages: half a second for a million.
func (t *Transport) Groups(ctx context.Context) (all []driver.GroupInfo, err error) {
	err = t.inspect(ctx, "list groups", func(ctx context.Context) error {
		byID, err := t.store.listGroups(ctx)
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

// Topics are the topics and patterns that groups have asked for.
func (t *Transport) Topics(ctx context.Context) (all []driver.TopicInfo, err error) {
	groups := make(map[string][]string)
	err = t.inspect(ctx, "list topics", func(ctx context.Context) error {
		clear(groups)
		return t.store.eachSubscription(ctx, func(group, pattern string) {
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
	if t.isClosed() {
		return driver.ErrClosed
	}
	ctx, cancel := t.while(ctx)
	defer cancel()
	if err := t.store.retry(ctx, do); err != nil {
		return t.failure(what, err)
	}
	return nil
}

// listGroups is every group by its id.
func (s *store) listGroups(ctx context.Context) (map[int64]*driver.GroupInfo, error) {
	type row struct {
		id   int64
		name string
	}
	rows, err := collect(ctx, s.db, func(r rows, g *row) error { return r.Scan(&g.id, &g.name) }, s.sql(`SELECT id, name FROM {groups}`))
	if err != nil {
		return nil, err
	}
	groups, byName := make(map[int64]*driver.GroupInfo, len(rows)), make(map[string]*driver.GroupInfo, len(rows))
	for _, r := range rows {
		g := &driver.GroupInfo{Name: r.name}
		groups[r.id], byName[r.name] = g, g
	}
	err = s.eachSubscription(ctx, func(group, pattern string) {
		if g := byName[group]; g != nil {
			g.Topics = append(g.Topics, pattern)
		}
	})
	if err != nil {
		return nil, err
	}
	if err := s.countConsumers(ctx, groups); err != nil {
		return nil, err
	}
	return groups, s.countMessages(ctx, groups)
}

// eachSubscription is in the order of the patterns.
func (s *store) eachSubscription(ctx context.Context, visit func(group, pattern string)) error {
	type row struct{ group, pattern string }
	all, err := collect(ctx, s.db, func(r rows, x *row) error { return r.Scan(&x.group, &x.pattern) },
		s.sql(`SELECT g.name, s.pattern FROM {subscriptions} s JOIN {groups} g ON g.id = s.group_id ORDER BY s.pattern`))
	for _, x := range all {
		visit(x.group, x.pattern)
	}
	return err
}

func (s *store) countConsumers(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	type row struct{ group, n int64 }
	all, err := collect(ctx, s.db, func(r rows, x *row) error { return r.Scan(&x.group, &x.n) },
		s.sql(`SELECT group_id, count(*) FROM {consumers} WHERE expires_at > {now} GROUP BY group_id`))
	for _, x := range all {
		if g := groups[x.group]; g != nil {
			g.Consumers = int(x.n)
		}
	}
	return err
}

// tally is how many messages of a group are in one state.
type tally struct {
	group, state, n, oldest int64
	taken, later            bool
}

func (s *store) countMessages(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	tallies, err := collect(ctx, s.db, func(r rows, x *tally) error {
		return r.Scan(&x.group, &x.state, &x.taken, &x.later, &x.n, &x.oldest)
	}, s.sql(`
		SELECT group_id, state, taken, later, count(*), min(first_at) FROM (
			SELECT m.group_id, m.state, m.first_at, m.due_at > {now} AS later, c.id IS NOT NULL AS taken
			FROM {messages} m LEFT JOIN {consumers} c ON c.id = m.owner AND c.expires_at > {now}
		) t GROUP BY group_id, state, taken, later`))
	for _, x := range tallies {
		if g := groups[x.group]; g != nil {
			x.enter(g)
		}
	}
	if err != nil {
		return err
	}
	return s.countHeldBack(ctx, groups)
}

// countHeldBack enters as parked what waits behind poisoned messages and has not been moved out of the
// claims' way.
func (s *store) countHeldBack(ctx context.Context, groups map[int64]*driver.GroupInfo) error {
	type row struct{ group, n int64 }
	all, err := collect(ctx, s.db, func(r rows, x *row) error { return r.Scan(&x.group, &x.n) }, s.sql(`
		SELECT h.group_id, count(*) FROM (SELECT group_id, pos, min(message_id) AS first FROM {holds} GROUP BY group_id, pos) h
		JOIN {messages} m ON m.group_id = h.group_id AND m.state = 4 AND m.pos = h.pos AND m.id > h.first GROUP BY h.group_id`))
	for _, x := range all {
		if g := groups[x.group]; g != nil {
			g.Parked += int(x.n)
			g.Waiting = max(g.Waiting-int(x.n), 0)
		}
	}
	return err
}

// enter adds a tally to its group. What the consumer had that died waits again.
func (x tally) enter(g *driver.GroupInfo) {
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

// Diagnose reaches the database and checks its version, the tables and the user's rights on them. It
// changes nothing.
func (t *Transport) Diagnose(ctx context.Context) []driver.Finding {
	findings, ok := t.store.checkTables(ctx)
	if !ok {
		return findings // what follows would only say so again
	}
	findings = append(findings, t.store.checkRights(ctx, busTables())...)
	if t.store.name == Postgres {
		findings = append(findings, t.store.checkSequences(ctx)...)
	}
	return findings
}

// DiagnoseInbox is [Transport.Diagnose] for an [Inbox], which needs less.
func (t *Transport) DiagnoseInbox(ctx context.Context) []driver.Finding {
	s := t.store
	findings, ok := s.checkTables(ctx)
	if !ok {
		return findings
	}
	findings = append(findings, s.checkRights(ctx, inboxTables())...)
	if findings[len(findings)-1].Err != nil {
		return findings
	}
	f := driver.Finding{Check: "inbox " + s.cfg.Prefix + "inbox", Text: "no message recorded"}
	type row struct{ oldest, newest int64 }
	all, err := collect(ctx, s.db, func(r rows, x *row) error { return r.Scan(&x.oldest, &x.newest) }, s.sql(`
		SELECT {now} - oldest, {now} - newest
		FROM (SELECT (SELECT min(seen_at) FROM {inbox}) AS oldest, (SELECT max(seen_at) FROM {inbox}) AS newest) seen WHERE oldest IS NOT NULL`))
	switch {
	case err != nil:
		f.Err, f.Text, f.Fix = err, "", "see to the database"
	case len(all) > 0:
		age := func(micros int64) time.Duration {
			return max(time.Duration(micros)*time.Microsecond, 0).Round(time.Second)
		}
		f.Text = fmt.Sprintf("remembers messages of the last %s; the last was handled %s ago", age(all[0].oldest), age(all[0].newest))
	}
	return append(findings, f)
}

// checkTables reaches the database; ok is false where there is no need to go on.
func (s *store) checkTables(ctx context.Context) (findings []driver.Finding, ok bool) {
	server := driver.Finding{Check: "reach the database", Fix: "start the database, or correct the URL's host, port, user and password"}
	versions, err := collect(ctx, s.db, func(r rows, v *string) error { return r.Scan(v) }, s.sql(s.askVersion()))
	if err != nil {
		server.Err = err
		return []driver.Finding{server}, false
	}
	server.Text, server.Fix = strings.Join(versions, ""), ""

	tables := driver.Finding{Check: "tables " + s.cfg.Prefix + "*"}
	version, err := s.version(ctx, s.db)
	switch {
	case err != nil:
		tables.Err, tables.Fix = err, "let the user read them"
	case version < SchemaVersion:
		tables.Err = &SchemaError{Found: version, Want: SchemaVersion, Prefix: s.cfg.Prefix}
		tables.Fix = "run leat migrate up"
	default:
		tables.Text = fmt.Sprintf("version %d", version)
	}
	return []driver.Finding{server, tables}, tables.Err == nil
}

func (s *store) askVersion() string {
	switch s.name {
	case Postgres:
		return `SELECT 'PostgreSQL ' || current_setting('server_version')`
	case SQLite:
		return `SELECT 'SQLite ' || sqlite_version()`
	default:
		return `SELECT CASE WHEN version() LIKE '%MariaDB%' THEN version() ELSE concat('MySQL ', version()) END`
	}
}

// use is what a service does to a table.
type use struct{ name, column, columns, values, rights string }

func busTables() []use {
	return []use{
		{"messages", "state", "group_id, state, pos, lane, first_at, topic, uuid, headers, payload", "id, 0, 0, 0, 0, '', '', '', ''", "SELECT INSERT UPDATE DELETE"},
		{"holds", "created_at", "message_id, group_id, pos, created_at", "message_id, 0, 0, 0", "SELECT INSERT UPDATE DELETE"},
		{"consumers", "expires_at", "id, expires_at, group_id, ordering, place", "id, 0, 0, 0, ''", "SELECT INSERT UPDATE DELETE"},
		{"groups", "created_at", "name, ordering, created_at", "'', 0, 0", "SELECT INSERT UPDATE"},
		{"subscriptions", "created_at", "pattern, group_id, depth, matches, created_at", "'', 0, 0, '', 0", "SELECT INSERT UPDATE"},
		{"turns", "created_at", "group_id, created_at", "group_id, 0", "SELECT INSERT UPDATE"},
	}
}

func inboxTables() []use {
	return []use{{"inbox", "seen_at", "seen_at, group_name, message_id", "0, '', ''", "SELECT INSERT DELETE"}}
}

// checkRights tries on every table what a service does to it, with statements that concern no row.
func (s *store) checkRights(ctx context.Context, tables []use) (findings []driver.Finding) {
	for _, table := range tables {
		f := driver.Finding{Check: "rights on " + s.cfg.Prefix + table.name}
		var missing []string
		for right := range strings.FieldsSeq(table.rights) {
			name := "{" + table.name + "}"
			query := map[string]string{
				"SELECT": "SELECT count(*) FROM " + name + " WHERE 1 = 0",
				"INSERT": "INSERT INTO " + name + " (" + table.columns + ") SELECT " + table.values + " FROM " + name + " WHERE 1 = 0",
				"UPDATE": "UPDATE " + name + " SET " + table.column + " = " + table.column + " WHERE 1 = 0",
				"DELETE": "DELETE FROM " + name + " WHERE 1 = 0",
			}[right]
			if _, err := s.db.exec(ctx, s.complete(query)); err != nil {
				missing = append(missing, right)
				f.Err = err
			}
		}
		if f.Err != nil {
			f.Fix = fmt.Sprintf("GRANT %s ON %s TO the service's user", strings.Join(missing, ", "), s.table(table.name))
		} else {
			f.Text = strings.ReplaceAll(table.rights, " ", ", ")
		}
		findings = append(findings, f)
	}
	return findings
}

// checkSequences is for ids, which PostgreSQL gives out by sequences with rights of their own.
func (s *store) checkSequences(ctx context.Context) (findings []driver.Finding) {
	for _, name := range []string{"messages_id_seq", "groups_id_seq"} {
		f := driver.Finding{Check: "rights on " + s.cfg.Prefix + name, Text: "USAGE, SELECT"}
		may, _, err := number(ctx, s.db, s.sql(`SELECT (has_sequence_privilege(?::text, 'USAGE') AND has_sequence_privilege(?::text, 'SELECT'))::int`),
			s.table(name), s.table(name))
		if err == nil && may == 0 {
			err = fmt.Errorf("the user may not use %s", s.table(name))
		}
		if err != nil {
			f.Err, f.Text = err, ""
			f.Fix = fmt.Sprintf("GRANT USAGE, SELECT ON %s TO the service's user", s.table(name))
		}
		findings = append(findings, f)
	}
	return findings
}
