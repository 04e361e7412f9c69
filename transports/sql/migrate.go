package sql

import (
	"context"
	stdsql "database/sql"
	"embed"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"strings"
)

// One file for each version, and for each dialect where they differ, with the tables' names in braces. A file that has been
// released never changes; what comes later is a new file.
//
//go:embed migrations/*.sql
var migrations embed.FS

// SchemaVersion is the newest version of the tables that this program knows: [Migrate] leads to it, and new tables
// have it.
const SchemaVersion = 5

// MinSchemaVersion is the oldest version of the tables that this program works with. Opening with [MigrateAuto] leads
// older tables to it and no further: what came later is not understood by processes of the release before this one,
// which may be running while this one is rolled out.
const MinSchemaVersion = 3

const (
	// versionJSON is the first version in which headers are written as JSON.
	versionJSON = 4
	// versionReturns is the first version in which every process notes what comes back to key queues.
	versionReturns = 5
)

// SchemaError says that the tables are not what the program needs.
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

// Fix returns what to do about it.
func (e *SchemaError) Fix() string { return "run leat migrate up with this URL, or a newer service" }

// Migrate makes the tables that the configuration names, or brings them up to [SchemaVersion]. Any
// number of processes may do so at once: one does it, and the others wait for it. Tables that are
// newer than the program are left alone. All processes that use the tables must be of this release or a later one;
// those that run go on as before until they are restarted.
func Migrate(ctx context.Context, db *stdsql.DB, cfg Config) error {
	d, err := newDatabase(&stdPool{db: db}, cfg)
	if err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	if err := (schema{d}).migrate(ctx, SchemaVersion); err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	return nil
}

// MigrationStatus returns the version of the tables that are there, 0 for none. The program needs
// [MinSchemaVersion], and knows up to [SchemaVersion].
func MigrationStatus(ctx context.Context, db *stdsql.DB, cfg Config) (version int, err error) {
	d, err := newDatabase(&stdPool{db: db}, cfg)
	if err != nil {
		return 0, fmt.Errorf("sql: %w", err)
	}
	version, err = schema{d}.version(ctx, d.pool)
	if err != nil {
		return 0, fmt.Errorf("sql: %w", err)
	}
	return version, nil
}

// MigrationSQL returns what [Migrate] runs on tables of the version from, as a script for other tools.
func MigrationSQL(cfg Config, from int) (string, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return "", fmt.Errorf("sql: %w", err)
	}
	s, err := newStatements(cfg)
	if err != nil {
		return "", fmt.Errorf("sql: %w", err)
	}
	var b strings.Builder
	for _, statement := range s.migration(from, SchemaVersion) {
		b.WriteString(statement)
		b.WriteString(";\n\n")
	}
	return b.String(), nil
}

// migration returns every statement that leads from one version to another.
func (s *statements) migration(from, to int) (all []string) {
	names := strings.NewReplacer(
		"{subscriptions_depth}", s.quote(s.cfg.Prefix+"subscriptions_depth"),
		"{holds_lane}", s.quote(s.cfg.Prefix+"holds_lane"),
		"{inbox_seen}", s.quote(s.cfg.Prefix+"inbox_seen"),
	)
	if from == 0 {
		all = append(all, s.sql(`CREATE TABLE IF NOT EXISTS {migrations} (version INTEGER NOT NULL PRIMARY KEY, applied_at BIGINT NOT NULL)`))
	}
	for version := from + 1; version <= to; version++ {
		script, err := migrations.ReadFile(fmt.Sprintf("migrations/%s_%d.sql", s.name, version))
		if errors.Is(err, fs.ErrNotExist) {
			script, err = migrations.ReadFile(fmt.Sprintf("migrations/all_%d.sql", version))
		}
		if err != nil {
			panic(err) // the file is part of the program
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

// schema makes and alters the tables, and sees to them when they are opened.
type schema struct{ *database }

// migrate leads older tables to a version. New ones get the newest: no older process works with them.
func (s schema) migrate(ctx context.Context, to int) error {
	return s.retry(ctx, func(ctx context.Context) error {
		version, err := s.version(ctx, s.pool)
		if err != nil || version >= to {
			return err
		}
		return s.pool.inTx(ctx, func(tx executor) error { return s.migrateAlone(ctx, tx, to) })
	})
}

func (s schema) migrateAlone(ctx context.Context, tx executor, to int) error {
	unlock, err := s.lockMigration(ctx, tx)
	if err != nil {
		return err
	}
	defer unlock()
	version, err := s.version(ctx, tx)
	if err != nil {
		return err
	}
	if version == 0 {
		to = SchemaVersion
	}
	for _, statement := range s.migration(version, to) {
		if _, err := tx.exec(ctx, statement); err != nil {
			return fmt.Errorf("migrate to version %d (leat migrate print shows what for, should somebody else have to do it): %w", to, err)
		}
	}
	return nil
}

// errLocked is a wait for another process's migration that took too long.
var errLocked = errors.New("another process has been changing the tables for 60s")

// lockMigration keeps other processes out. SQLite's transaction is the only writer's by itself.
func (s schema) lockMigration(ctx context.Context, tx executor) (unlock func(), err error) {
	h := fnv.New64a()
	_, _ = h.Write([]byte("leat migration of " + s.table("messages"))) // never fails
	key := int64(h.Sum64())                                            //nolint:gosec // any number will do
	switch s.name {
	case Postgres:
		_, err := tx.exec(ctx, s.sql(`SELECT pg_advisory_xact_lock(?)`), key)
		return func() {}, err
	case MySQL:
		name := fmt.Sprintf("leat migration %x", key)
		got, _, err := number(ctx, tx, s.sql(`SELECT GET_LOCK(?, 60)`), name)
		if err == nil && got != 1 {
			err = errLocked
		}
		return func() { _, _, _ = number(context.WithoutCancel(ctx), tx, s.sql(`SELECT RELEASE_LOCK(?)`), name) }, err
	case SQLite:
	}
	return func() {}, nil
}

// version returns the version of the tables, 0 if there are none.
func (s schema) version(ctx context.Context, ex executor) (int, error) {
	args := []any{s.cfg.Prefix + "migrations"}
	there := `SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = ?`
	switch s.name {
	case Postgres: // not to_regclass: it may answer from what the connection remembers
		there = `SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relname = ?::text AND (n.nspname = ?::text OR ?::text = '' AND n.nspname = ANY (current_schemas(false)))`
		args = append(args, s.cfg.Schema, s.cfg.Schema)
	case SQLite:
		there = `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?`
	case MySQL:
	}
	n, _, err := number(ctx, ex, s.sql(there), args...)
	if err != nil || n == 0 {
		return 0, err
	}
	version, _, err := number(ctx, ex, s.sql(`SELECT max(version) FROM {migrations}`))
	return int(version), err
}

// prepare sees to the tables when a transport opens.
func (s schema) prepare(ctx context.Context) error {
	if err := s.checkAutocommit(ctx); err != nil {
		return err
	}
	if err := s.prepareTables(ctx); err != nil {
		return err
	}
	if err := s.retry(ctx, s.findFile); err != nil {
		return err
	}
	return s.retry(ctx, func(ctx context.Context) (err error) {
		s.born, _, err = number(ctx, s.pool, s.sql(`SELECT applied_at FROM {migrations} WHERE version = 1`))
		return err
	})
}

var errAutocommit = errors.New("autocommit is off on the pool's connections, so that nothing would be committed; " +
	"set autocommit=1 in the DSN, and in init_connect or my.cnf if it comes from there")

// checkAutocommit looks at the connections of MySQL. It fails on a user's pool whose statements outside of a transaction are never committed:
// Publish would return nil for messages that nobody gets.
func (s schema) checkAutocommit(ctx context.Context) error {
	if s.name != MySQL {
		return nil
	}
	return s.retry(ctx, func(ctx context.Context) error {
		type row struct {
			on      int
			version string
		}
		found, err := collect(ctx, s.pool, func(r rows, x *row) error { return r.Scan(&x.on, &x.version) }, `SELECT @@autocommit, version()`)
		if err == nil && (len(found) == 0 || found[0].on != 1) {
			err = errAutocommit
		}
		if err == nil {
			s.tellsTx = strings.Contains(found[0].version, "MariaDB")
		}
		return err
	})
}

func (s schema) prepareTables(ctx context.Context) error {
	if s.cfg.Migrate == MigrateAuto {
		if err := s.migrate(ctx, MinSchemaVersion); err != nil {
			return err
		}
	}
	return s.retry(ctx, func(ctx context.Context) error {
		version, err := s.version(ctx, s.pool)
		if err == nil && version < MinSchemaVersion {
			err = &SchemaError{Found: version, Want: MinSchemaVersion, Prefix: s.cfg.Prefix}
		}
		s.json, s.bounded = version >= versionJSON, version >= versionReturns && s.name == Postgres
		return err
	})
}

// findFile remembers the file, if there is one.
func (s schema) findFile(ctx context.Context) error {
	if s.name != SQLite {
		return nil
	}
	paths, err := collect(ctx, s.pool, func(r rows, path *string) error { return r.Scan(path) },
		`SELECT file FROM pragma_database_list WHERE name = 'main'`)
	if err != nil || len(paths) == 0 || paths[0] == "" {
		return err // "" is a database in memory
	}
	info, err := os.Stat(paths[0])
	if err == nil {
		s.file = &sqliteFile{paths[0], info}
	}
	return err
}
