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

// There is one file for each version, or for each version and dialect if they differ, with the tables' names in braces. A released file
// never changes; later changes are new files.
//
//go:embed migrations/*.sql
var migrations embed.FS

// SchemaVersion is the newest version of the tables that this program knows. [Migrate] migrates to it, and new tables
// have it.
const SchemaVersion = 7

// MinSchemaVersion is the oldest version of the tables that this program works with. Opening with [MigrateAuto] migrates
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

// Migrate creates the tables that the configuration names, or migrates them to [SchemaVersion]. It blocks until
// that is done or ctx is done. Several processes may call it at once: one migrates, and the others wait for it. It does
// not change tables that are newer than the program. All processes that use the tables must be of this release or a
// later one; running processes use the new version after a restart.
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

// MigrationStatus returns the version of the existing tables, 0 if there are none. The program supports
// versions from [MinSchemaVersion], and knows those up to [SchemaVersion].
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

// MigrationSQL returns the statements that [Migrate] runs on tables of the version from, as a script for other tools.
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

// migration returns the statements that migrate from one version to another.
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

// schema creates, migrates and checks the tables.
type schema struct{ *database }

// migrate migrates older tables to a version. New tables get the newest version, since no older process uses them.
func (s schema) migrate(ctx context.Context, to int) error {
	return s.retry(ctx, func(ctx context.Context) error {
		version, err := s.version(ctx, s.pool)
		if err != nil || version >= to {
			return err
		}
		return s.pool.inTx(ctx, func(tx executor) error { return s.migrateExclusively(ctx, tx, to) })
	})
}

func (s schema) migrateExclusively(ctx context.Context, tx executor, to int) error {
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
			return fmt.Errorf("migrate to version %d (if this user lacks the right, leat migrate print prints the statements for another one): %w", to, err)
		}
	}
	return nil
}

// errLocked is returned when another process's migration takes too long.
var errLocked = errors.New("another process has been changing the tables for 60s")

// lockMigration blocks until no other process migrates. SQLite needs no lock, because a transaction is the only writer.
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
	case Postgres: // not to_regclass, which may return what the connection has cached
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

// prepare creates, migrates and checks the tables when a transport opens, as [Config].Migrate says.
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

// checkAutocommit returns an error if autocommit is off on the connections of a user's MySQL pool. Statements outside of a transaction
// would never be committed: Publish would return nil for messages that are lost.
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
			s.hasInTransaction = strings.Contains(found[0].version, "MariaDB")
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
		s.json, s.fenced, s.programs = version >= versionJSON, version >= versionFences, version >= versionPrograms
		s.bounded = version >= versionReturns && s.name == Postgres
		return err
	})
}

// findFile records the file of a SQLite database, unless it is in memory.
func (s schema) findFile(ctx context.Context) error {
	if s.name != SQLite {
		return nil
	}
	paths, err := collect(ctx, s.pool, func(r rows, path *string) error { return r.Scan(path) },
		`SELECT file FROM pragma_database_list WHERE name = 'main'`)
	if err != nil || len(paths) == 0 || paths[0] == "" {
		return err // the path of a database in memory is ""
	}
	info, err := os.Stat(paths[0])
	if err == nil {
		s.file = &sqliteFile{paths[0], info}
	}
	return err
}
