package main

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/internal/cli"
	"github.com/leatbus/leat/internal/urlopt"
	"github.com/leatbus/leat/transports/sql"
)

// migrate has the commands for tables.
type migrate struct {
	Up     migrateUp     `cmd:"" help:"Create or migrate the tables. Several processes may do so at once."`
	Status migrateStatus `cmd:"" help:"Print the version of the tables. Fails if leat needs a newer one."`
	Print  migratePrint  `cmd:"" help:"Print the statements that up would run, for another migration tool."`
}

type migrateUp struct {
	Wait time.Duration `default:"30s" help:"How long to wait for a starting database, and for its locks."`
}

// Run creates or migrates the tables.
func (c *migrateUp) Run(ctx context.Context, e *cli.Env, at *target) error {
	db, err := at.openTables()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	if err := sql.Migrate(ctx, db.DB, db.cfg); err != nil {
		return db.explain(err, c.Wait)
	}
	return db.report(ctx, e)
}

type migrateStatus struct {
	Wait time.Duration `default:"10s" help:"How long to wait for a response."`
}

// Run prints the version of the tables.
func (c *migrateStatus) Run(ctx context.Context, e *cli.Env, at *target) error {
	db, err := at.openTablesBy(sql.OpenExistingDB)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	ctx, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	return db.report(ctx, e)
}

type migratePrint struct {
	From int `default:"0" help:"The current version of the tables; 0 prints everything."`
}

// Run prints statements. It connects to nothing.
func (c *migratePrint) Run(e *cli.Env, at *target) error {
	if c.From < 0 || c.From > sql.SchemaVersion {
		return &cli.UsageError{Err: fmt.Errorf("--from=%d: there are versions 0 to %d", c.From, sql.SchemaVersion)}
	}
	db, err := at.openTables()
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	script, err := sql.MigrationSQL(db.cfg, c.From)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(e.Stdout, script)
	return err
}

// tables are the tables of the URL.
type tables struct {
	*stdsql.DB
	cfg   sql.Config
	where string
}

func (t *target) openTables() (*tables, error) { return t.openTablesBy(sql.OpenDB) }

func (t *target) openTablesBy(open func(*url.URL) (*stdsql.DB, sql.Config, error)) (*tables, error) {
	u, err := t.parse()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(sql.Schemes(), u.Scheme) {
		return nil, &cli.UsageError{Err: fmt.Errorf("%s:// has no tables; this is for %s", u.Scheme, strings.Join(sql.Schemes(), ", "))}
	}
	db, cfg, err := open(u)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: there are none, and no such file; %w", place(u, cfg), errOutOfDate)
	}
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return &tables{DB: db, cfg: cfg, where: place(u, cfg)}, nil
}

// place describes the tables without secrets and details.
func place(u *url.URL, cfg sql.Config) string {
	if cfg.Schema != "" {
		return fmt.Sprintf("%s, schema %s, tables %s*", urlopt.Show(u), cfg.Schema, cfg.Prefix)
	}
	return fmt.Sprintf("%s, tables %s*", urlopt.Show(u), cfg.Prefix)
}

var errOutOfDate = errors.New("run leat migrate up")

// report prints the version of the tables.
func (t *tables) report(ctx context.Context, e *cli.Env) error {
	version, err := sql.MigrationStatus(ctx, t.DB, t.cfg)
	if err != nil {
		return t.explain(err, 0)
	}
	switch {
	case version == 0:
		return fmt.Errorf("%s: there are none; %w", t.where, errOutOfDate)
	case version < sql.MinSchemaVersion:
		return fmt.Errorf("%s: version %d, and this leat needs %d; %w", t.where, version, sql.MinSchemaVersion, errOutOfDate)
	case version < sql.SchemaVersion:
		_, err = fmt.Fprintf(e.Stdout, "%s: version %d; once no service of an older release runs, leat migrate up leads to version %d\n", t.where, version, sql.SchemaVersion)
	case version > sql.SchemaVersion:
		_, err = fmt.Fprintf(e.Stdout, "%s: version %d, newer than the %d of this leat\n", t.where, version, sql.SchemaVersion)
	default:
		_, err = fmt.Fprintf(e.Stdout, "%s: version %d, up to date\n", t.where, version)
	}
	return err
}

// explain adds the place and, after a timeout, a hint to an error.
func (t *tables) explain(err error, waited time.Duration) error {
	if waited > 0 && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w after %s; is the database running there, and does another migration hold a lock?", t.where, err, waited)
	}
	return fmt.Errorf("%s: %w", t.where, err)
}
