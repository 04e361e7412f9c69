package sql

import (
	"context"
	stdsql "database/sql"
	"fmt"

	"github.com/leatbus/leat/transports/sql/internal/database"
)

// Migrate creates the tables that the configuration names, or migrates them to [SchemaVersion]. It blocks until
// that is done or ctx is done. Several processes may call it at once: one migrates, and the others wait for it. It does
// not change tables that are newer than the program. All processes that use the tables must be of this release or a
// later one; running processes use the new version after a restart.
func Migrate(ctx context.Context, db *stdsql.DB, cfg Config) error {
	d, err := database.New(&database.StdPool{DB: db}, cfg)
	if err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	if err := d.Migrate(ctx, SchemaVersion); err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	return nil
}

// MigrationStatus returns the version of the existing tables, 0 if there are none. The program supports
// versions from [MinSchemaVersion], and knows those up to [SchemaVersion].
func MigrationStatus(ctx context.Context, db *stdsql.DB, cfg Config) (version int, err error) {
	d, err := database.New(&database.StdPool{DB: db}, cfg)
	if err != nil {
		return 0, fmt.Errorf("sql: %w", err)
	}
	version, err = d.Version(ctx, d.Pool)
	if err != nil {
		return 0, fmt.Errorf("sql: %w", err)
	}
	return version, nil
}

// MigrationSQL returns the statements that [Migrate] runs on tables of the version from, as a script for other tools.
func MigrationSQL(cfg Config, from int) (string, error) {
	script, err := database.MigrationScript(cfg, from)
	if err != nil {
		return "", fmt.Errorf("sql: %w", err)
	}
	return script, nil
}
