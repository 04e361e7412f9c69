package queue

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// Diagnose connects to the database and checks its version, the tables and the user's rights on them. It
// changes nothing.
func (t *Transport) Diagnose(ctx context.Context) []driver.Finding {
	findings, ok := doctor{t.core.DB}.checkTables(ctx)
	if !ok {
		return findings // the other checks would fail for the same reason
	}
	findings = append(findings, doctor{t.core.DB}.checkRights(ctx, busTables())...)
	if t.core.Name == sqlconfig.Postgres {
		findings = append(findings, doctor{t.core.DB}.checkSequences(ctx)...)
	}
	return findings
}

// DiagnoseInbox does the same as [Transport.Diagnose] for an inbox, which needs fewer tables and rights.
func (t *Transport) DiagnoseInbox(ctx context.Context) []driver.Finding {
	s := doctor{t.core.DB}
	findings, ok := s.checkTables(ctx)
	if !ok {
		return findings
	}
	findings = append(findings, s.checkRights(ctx, inboxTables())...)
	if findings[len(findings)-1].Err != nil {
		return findings
	}
	f := driver.Finding{Check: "inbox " + s.Config.Prefix + "inbox", Text: "no message recorded"}
	type row struct{ oldest, newest int64 }
	all, err := database.Collect(ctx, s.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.oldest, &x.newest) }, s.SQL(`
		SELECT {now} - oldest, {now} - newest
		FROM (SELECT (SELECT min(seen_at) FROM {inbox}) AS oldest, (SELECT max(seen_at) FROM {inbox}) AS newest) seen WHERE oldest IS NOT NULL`))
	switch {
	case err != nil:
		f.Err, f.Text, f.Fix = err, "", "check the database server and its log"
	case len(all) > 0:
		age := func(micros int64) time.Duration {
			return max(time.Duration(micros)*time.Microsecond, 0).Round(time.Second)
		}
		f.Text = fmt.Sprintf("remembers messages of the last %s; the last was handled %s ago", age(all[0].oldest), age(all[0].newest))
	}
	return append(findings, f)
}

// doctor runs the checks of Diagnose.
type doctor struct{ *database.DB }

// checkTables connects to the database and checks the version of the tables. ok is false if further checks are pointless.
func (d doctor) checkTables(ctx context.Context) (findings []driver.Finding, ok bool) {
	server := driver.Finding{Check: "reach the database", Fix: "start the database, or correct the URL's host, port, user and password"}
	versions, err := database.Collect(ctx, d.Pool, func(r database.Rows, v *string) error { return r.Scan(v) }, d.SQL(d.askVersion()))
	if err != nil {
		server.Err = err
		return []driver.Finding{server}, false
	}
	server.Text, server.Fix = strings.Join(versions, ""), ""

	tables := driver.Finding{Check: "tables " + d.Config.Prefix + "*"}
	version, err := d.Version(ctx, d.Pool)
	switch {
	case err != nil:
		tables.Err, tables.Fix = err, "let the user read them"
	case version < database.MinSchemaVersion:
		tables.Err = &database.SchemaError{Found: version, Want: database.MinSchemaVersion, Prefix: d.Config.Prefix}
		tables.Fix = "run leat migrate up"
	case version < database.SchemaVersion:
		tables.Text = fmt.Sprintf("version %d; once no process of an older release runs, run leat migrate up to migrate to version %d", version, database.SchemaVersion)
	default:
		tables.Text = fmt.Sprintf("version %d", version)
	}
	return []driver.Finding{server, tables}, tables.Err == nil
}

func (d doctor) askVersion() string {
	switch d.Name {
	case sqlconfig.Postgres:
		return `SELECT 'PostgreSQL ' || current_setting('server_version')`
	case sqlconfig.SQLite:
		return `SELECT 'SQLite ' || sqlite_version()`
	default:
		return `SELECT CASE WHEN version() LIKE '%MariaDB%' THEN version() ELSE concat('MySQL ', version()) END`
	}
}

// use describes how a service uses a table: statements of checkRights are made of it.
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

// checkRights runs on every table the statements that a service needs, with a condition that no row meets.
func (d doctor) checkRights(ctx context.Context, tables []use) (findings []driver.Finding) {
	for _, table := range tables {
		f := driver.Finding{Check: "rights on " + d.Config.Prefix + table.name}
		var missing []string
		for right := range strings.FieldsSeq(table.rights) {
			name := "{" + table.name + "}"
			query := map[string]string{
				"SELECT": "SELECT count(*) FROM " + name + " WHERE 1 = 0",
				"INSERT": "INSERT INTO " + name + " (" + table.columns + ") SELECT " + table.values + " FROM " + name + " WHERE 1 = 0",
				"UPDATE": "UPDATE " + name + " SET " + table.column + " = " + table.column + " WHERE 1 = 0",
				"DELETE": "DELETE FROM " + name + " WHERE 1 = 0",
			}[right]
			if _, err := d.Pool.Exec(ctx, d.Complete(query)); err != nil {
				missing = append(missing, right)
				f.Err = err
			}
		}
		if f.Err != nil {
			f.Fix = fmt.Sprintf("GRANT %s ON %s TO the service's user", strings.Join(missing, ", "), d.Table(table.name))
		} else {
			f.Text = strings.ReplaceAll(table.rights, " ", ", ")
		}
		findings = append(findings, f)
	}
	return findings
}

// checkSequences checks the rights on the sequences that PostgreSQL takes ids from.
func (d doctor) checkSequences(ctx context.Context) (findings []driver.Finding) {
	for _, name := range []string{"messages_id_seq", "groups_id_seq"} {
		f := driver.Finding{Check: "rights on " + d.Config.Prefix + name, Text: "USAGE, SELECT"}
		may, _, err := database.Number(ctx, d.Pool, d.SQL(`SELECT (has_sequence_privilege(?::text, 'USAGE') AND has_sequence_privilege(?::text, 'SELECT'))::int`),
			d.Table(name), d.Table(name))
		if err == nil && may == 0 {
			err = fmt.Errorf("the user may not use %s", d.Table(name))
		}
		if err != nil {
			f.Err, f.Text = err, ""
			f.Fix = fmt.Sprintf("GRANT USAGE, SELECT ON %s TO the service's user", d.Table(name))
		}
		findings = append(findings, f)
	}
	return findings
}
