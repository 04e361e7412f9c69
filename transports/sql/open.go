package sql

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"net/url"
	"os"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// Schemes returns the URL schemes that [Open] supports.
func Schemes() []string { return []string{"postgres", "postgresql", "mysql", "mariadb", "sqlite"} }

// Open returns a transport for a URL; see the package's documentation for the options. It connects,
// and creates and migrates the tables. If the server is starting, it blocks until ctx is done or the time of
// the option wait has passed.
func Open(ctx context.Context, u *url.URL) (driver.Transport, error) {
	source, err := config.Parse(u)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	source.Silence = config.MySQLIdleTimeout
	source.Config.Logger = driver.LoggerFrom(ctx)
	db, err := database.Connect(source)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	waiting, cancel := backoff.Bound(ctx, source.Wait, config.DefaultWait)
	defer cancel()
	t, err := open(waiting, db, source.Config)
	if err != nil {
		db.Close()
		return nil, err
	}
	return t, nil
}

// OpenDB opens the database of a URL through database/sql, and returns the configuration of the URL's
// options, for functions such as [Migrate]. It does not connect. The caller must close the pool.
func OpenDB(u *url.URL) (*stdsql.DB, Config, error) {
	source, err := config.Parse(u)
	if err != nil {
		return nil, Config{}, fmt.Errorf("sql: %w", err)
	}
	db, err := database.OpenDB(source)
	if err != nil {
		return nil, Config{}, fmt.Errorf("sql: %w", err)
	}
	return db, source.Config, nil
}

// OpenExistingDB does the same as [OpenDB], but does not create a SQLite file. If the file does not exist, it returns the
// configuration and an error that wraps [os.ErrNotExist].
func OpenExistingDB(u *url.URL) (*stdsql.DB, Config, error) {
	source, err := config.Parse(u)
	if err != nil || source.Config.Dialect != SQLite {
		return OpenDB(u)
	}
	path, err := database.LocateSQLite(u)
	if err == nil {
		_, err = os.Stat(path) //nolint:gosec // the operator chooses the path
	}
	if err != nil {
		return nil, source.Config, fmt.Errorf("sql: %w", err)
	}
	return OpenDB(u)
}
