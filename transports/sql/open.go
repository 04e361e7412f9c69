package sql

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"net/url"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/internal/queue"
)

// Schemes returns the URL schemes that [Open] supports.
func Schemes() []string { return []string{"postgres", "postgresql", "mysql", "mariadb", "sqlite"} }

// New returns a transport over a pool of database/sql, which the caller owns. It creates and migrates the tables,
// or checks them, as [Config].Migrate says. It blocks until the database can be reached or ctx is done. The transport
// uses no connection while a handler runs, so two connections are enough. If handlers use connections of the same pool,
// as those of an inbox do, the pool needs one for each of them and three more.
func New(ctx context.Context, db *stdsql.DB, cfg Config) (*Transport, error) {
	tx := &stdsql.TxOptions{Isolation: stdsql.LevelReadCommitted}
	if cfg.Dialect == SQLite {
		tx = nil // SQLite has only one level, the highest
	}
	return queue.Open(ctx, &database.StdPool{DB: db, Tx: tx}, cfg)
}

// NewPgx does the same as [New] with a pgx pool. While it consumes, the transport has one more connection besides the pool's, to listen
// for notifications.
func NewPgx(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Transport, error) {
	cfg.Dialect = Postgres
	return queue.Open(ctx, &database.PgxPool{Pool: pool}, cfg)
}

// Open returns a transport for a URL; see the package's documentation for the options. It connects,
// and creates and migrates the tables. If the server is starting, it blocks until ctx is done or the time of
// the option wait has passed.
func Open(ctx context.Context, u *url.URL) (driver.Transport, error) {
	source, err := config.Parse(u)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	source.Config.Logger = driver.LoggerFrom(ctx)
	db, err := database.Connect(source)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	waiting, cancel := backoff.Bound(ctx, source.Wait, config.DefaultWait)
	defer cancel()
	t, err := queue.Open(waiting, db, source.Config)
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
