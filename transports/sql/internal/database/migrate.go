package database

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"strings"

	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// There is one file for each version, or for each version and dialect if they differ, with the tables' names in braces. A released file
// never changes; later changes are new files.
//
//go:embed migrations/*.sql
var migrations embed.FS

// SchemaVersion is the newest version of the tables that this program knows. [DB.Migrate] migrates to it, and new tables
// have it.
const SchemaVersion = 7

// MinSchemaVersion is the oldest version of the tables that this program works with. Opening with [sqlconfig.MigrateAuto] migrates
// older tables to it and no further: processes of the previous release may still run while this one is rolled out, and
// do not understand later versions.
const MinSchemaVersion = 3

const (
	// versionJSON is the first version in which headers are written as JSON.
	versionJSON = 4
	// versionReturns is the first version in which every process calls markReturns.
	versionReturns = 5
	// versionFences is the first version in which every process raises the fencing numbers of groups.
	versionFences = 6
	// versionPrograms is the first version in which consumers have their programs and topics.
	versionPrograms = 7
)

// A SchemaError reports that the tables are missing or have a version that the program can't use.
type SchemaError struct {
	Found, Want int
	Prefix      string
}

func (e *SchemaError) Error() string {
	found := fmt.Sprintf("are at version %d", e.Found)
	if e.Found == 0 {
		found = "are missing"
	}
	return fmt.Sprintf("the tables %s* %s, and this program needs version %d; "+
		"run leat migrate up, or let the transport do it with the option migrate=auto", e.Prefix, found, e.Want)
}

// Fix returns how to fix the error.
func (e *SchemaError) Fix() string { return "run leat migrate up with this URL, or a newer service" }

// MigrationScript returns the statements that migrate tables of the version from to [SchemaVersion], as a script for other tools.
func MigrationScript(cfg sqlconfig.Config, from int) (string, error) {
	s, err := NewStatements(cfg)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, statement := range s.migration(from, SchemaVersion) {
		b.WriteString(statement)
		b.WriteString(";\n\n")
	}
	return b.String(), nil
}

// migration returns the statements that migrate from one version to another.
func (s *Statements) migration(from, to int) (all []string) {
	names := strings.NewReplacer(
		"{subscriptions_depth}", s.quote(s.Config.Prefix+"subscriptions_depth"),
		"{holds_lane}", s.quote(s.Config.Prefix+"holds_lane"),
		"{inbox_seen}", s.quote(s.Config.Prefix+"inbox_seen"),
	)
	if from == 0 {
		all = append(all, s.SQL(`CREATE TABLE IF NOT EXISTS {migrations} (version INTEGER NOT NULL PRIMARY KEY, applied_at BIGINT NOT NULL)`))
	}
	for version := from + 1; version <= to; version++ {
		script, err := migrations.ReadFile(fmt.Sprintf("migrations/%s_%d.sql", s.Name, version))
		if errors.Is(err, fs.ErrNotExist) {
			script, err = migrations.ReadFile(fmt.Sprintf("migrations/all_%d.sql", version))
		}
		if err != nil {
			panic(err) // the files are embedded
		}
		for statement := range strings.SplitSeq(s.names.Replace(names.Replace(string(script))), ";\n") {
			if statement = strings.TrimSpace(statement); statement != "" {
				all = append(all, statement)
			}
		}
		all = append(all, s.names.Replace(fmt.Sprintf(`INSERT INTO {migrations} (version, applied_at) VALUES (%d, {now})`, version)))
	}
	return all
}

// Migrate migrates older tables to a version. New tables get the newest version, since no older process uses them.
func (d *DB) Migrate(ctx context.Context, to int) error {
	return d.Retry(ctx, func(ctx context.Context) error {
		version, err := d.Version(ctx, d.Pool)
		if err != nil || version >= to {
			return err
		}
		return d.Pool.InTx(ctx, func(tx Executor) error { return d.migrateExclusively(ctx, tx, to) })
	})
}

func (d *DB) migrateExclusively(ctx context.Context, tx Executor, to int) error {
	unlock, err := d.lockMigration(ctx, tx)
	if err != nil {
		return err
	}
	defer unlock()
	version, err := d.Version(ctx, tx)
	if err != nil {
		return err
	}
	if version == 0 {
		to = SchemaVersion
	}
	for _, statement := range d.migration(version, to) {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("migrate to version %d (if this user lacks the right, leat migrate print prints the statements for another one): %w", to, err)
		}
	}
	return nil
}

// errLocked is returned when another process's migration takes too long.
var errLocked = errors.New("another process has been changing the tables for 60s")

// lockMigration blocks until no other process migrates. SQLite needs no lock, because a transaction is the only writer.
func (d *DB) lockMigration(ctx context.Context, tx Executor) (unlock func(), err error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte("leat migration of " + d.Table("messages"))) // never fails
	key := int64(h.Sum64())                                            //nolint:gosec // any number will do
	switch d.Name {
	case sqlconfig.Postgres:
		_, err := tx.Exec(ctx, d.SQL(`SELECT pg_advisory_xact_lock(?)`), key)
		return func() {}, err
	case sqlconfig.MySQL:
		name := fmt.Sprintf("leat migration %x", key)
		got, _, err := Number(ctx, tx, d.SQL(`SELECT GET_LOCK(?, 60)`), name)
		if err == nil && got != 1 {
			err = errLocked
		}
		return func() { _, _, _ = Number(context.WithoutCancel(ctx), tx, d.SQL(`SELECT RELEASE_LOCK(?)`), name) }, err
	case sqlconfig.SQLite:
	}
	return func() {}, nil
}

// Version returns the version of the tables, 0 if there are none.
func (d *DB) Version(ctx context.Context, ex Executor) (int, error) {
	args := []any{d.Config.Prefix + "migrations"}
	there := `SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?`
	switch d.Name {
	case sqlconfig.Postgres: // not to_regclass, which may return what the connection has cached
		there = `SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relname = ?::text AND (n.nspname = ?::text OR ?::text = '' AND n.nspname = ANY (current_schemas(false)))`
		args = append(args, d.Config.Schema, d.Config.Schema)
	case sqlconfig.SQLite:
		there = `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?`
	case sqlconfig.MySQL:
	}
	n, _, err := Number(ctx, ex, d.SQL(there), args...)
	if err != nil || n == 0 {
		return 0, err
	}
	version, _, err := Number(ctx, ex, d.SQL(`SELECT max(version) FROM {migrations}`))
	return int(version), err
}

// Prepare creates, migrates and checks the tables when a transport opens, as Config.Migrate says.
func (d *DB) Prepare(ctx context.Context) error {
	if err := d.checkAutocommit(ctx); err != nil {
		return err
	}
	if err := d.prepareTables(ctx); err != nil {
		return err
	}
	if err := d.Retry(ctx, d.findFile); err != nil {
		return err
	}
	return d.Retry(ctx, func(ctx context.Context) (err error) {
		d.Born, _, err = Number(ctx, d.Pool, d.SQL(`SELECT applied_at FROM {migrations} WHERE version = 1`))
		return err
	})
}

var errAutocommit = errors.New("autocommit is off on the pool's connections, so that nothing would be committed; " +
	"set autocommit=1 in the DSN, and in init_connect or my.cnf if it comes from there")

// checkAutocommit returns an error if autocommit is off on the connections of a user's MySQL pool. Statements outside of a transaction
// would never be committed: Publish would return nil for messages that are lost.
func (d *DB) checkAutocommit(ctx context.Context) error {
	if d.Name != sqlconfig.MySQL {
		return nil
	}
	return d.Retry(ctx, func(ctx context.Context) error {
		type row struct {
			on      int
			version string
		}
		found, err := Collect(ctx, d.Pool, func(r Rows, x *row) error { return r.Scan(&x.on, &x.version) }, `SELECT @@autocommit, version()`)
		if err == nil && (len(found) == 0 || found[0].on != 1) {
			err = errAutocommit
		}
		if err == nil {
			d.hasInTransaction = strings.Contains(found[0].version, "MariaDB")
		}
		return err
	})
}

func (d *DB) prepareTables(ctx context.Context) error {
	if d.Config.Migrate == sqlconfig.MigrateAuto {
		if err := d.Migrate(ctx, MinSchemaVersion); err != nil {
			return err
		}
	}
	return d.Retry(ctx, func(ctx context.Context) error {
		version, err := d.Version(ctx, d.Pool)
		if err == nil && version < MinSchemaVersion {
			err = &SchemaError{Found: version, Want: MinSchemaVersion, Prefix: d.Config.Prefix}
		}
		d.JSON, d.Fenced, d.Programs = version >= versionJSON, version >= versionFences, version >= versionPrograms
		d.Bounded = version >= versionReturns && d.Name == sqlconfig.Postgres
		return err
	})
}

// findFile records the file of a SQLite database, unless it is in memory.
func (d *DB) findFile(ctx context.Context) error {
	if d.Name != sqlconfig.SQLite {
		return nil
	}
	paths, err := Collect(ctx, d.Pool, func(r Rows, path *string) error { return r.Scan(path) },
		`SELECT file FROM pragma_database_list WHERE name = 'main'`)
	if err != nil || len(paths) == 0 || paths[0] == "" {
		return err // the path of a database in memory is ""
	}
	info, err := os.Stat(paths[0])
	if err == nil {
		d.file = &sqliteFile{paths[0], info}
	}
	return err
}
