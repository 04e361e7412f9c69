package database

import (
	"context"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A DB is a pool of connections and one set of tables. Only Retry and RetryAlways retry. Its methods may be called
// concurrently.
type DB struct {
	*Statements
	Pool    Pool
	Relaxed Pool // the same connections, for commits that need not wait for the disk
	Link    *Link
	Arrays  bool // an insert may pass its messages as arrays

	// Set by Prepare and not written afterwards.
	Born             int64 // when the tables were created, in microseconds; identifies them
	file             *sqliteFile
	hasInTransaction bool // the server has @@in_transaction, as MariaDB does
}

// New returns a DB over a pool, which stays the caller's. It does not connect. It returns an error if the configuration is invalid.
func New(over Pool, cfg sqlconfig.Config) (*DB, error) {
	statements, err := NewStatements(cfg)
	if err != nil {
		return nil, err
	}
	_, arrays := over.(*PgxPool)
	return &DB{Statements: statements, Pool: over, Relaxed: relaxed(over), Link: new(Link), Arrays: arrays}, nil
}

// Retry runs f until it succeeds, returns an error that is not temporary, or ctx is done.
func (d *DB) Retry(ctx context.Context, f func(ctx context.Context) error) error {
	wait := NewBackoff()
	for {
		err := f(ctx)
		if err == nil {
			d.Link.Works()
			return nil
		}
		if ctx.Err() != nil {
			return contextError(ctx, err)
		}
		if !d.Temporary(err) {
			return d.Explain(err)
		}
		driver.SetLastError(ctx, err)
		if !backoff.Sleep(ctx, wait.Next()) {
			return contextError(ctx, err)
		}
	}
}

// RetryAlways runs f until it succeeds or ctx is done, whatever the error. It calls report when f has failed several times.
func (d *DB) RetryAlways(ctx context.Context, f func(ctx context.Context) error, report func(error)) error {
	wait := NewBackoff()
	for {
		err := f(ctx)
		if err == nil {
			d.Link.Works()
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		d.Temporary(err)
		pause := wait.Next()
		if pause > LongestBackoff/4 {
			report(err)
		}
		if !backoff.Sleep(ctx, pause) {
			return err
		}
	}
}

// Temporary reports whether err is worth a retry. It also records a lost connection, and closes idle connections to a server that has
// become read-only.
func (d *DB) Temporary(err error) bool {
	if ConnectionLost(err) {
		d.Link.fails(err)
	}
	if d.readOnly(err) {
		d.Pool.recycle() // the server is no longer the primary
	}
	return d.retryable(err)
}

// Explain adds a hint to errors whose text has none.
func (d *DB) Explain(err error) error {
	switch code := postgresCode(err); {
	case d.Name != sqlconfig.Postgres:
	case code == "26000", code == "42P05":
		return fmt.Errorf("%w; behind pgbouncer in transaction mode, set default_query_exec_mode=exec, an option of the URL", err)
	}
	return err
}

// FileGone returns an error if the database is a file that was deleted or replaced while it was open.
func (d *DB) FileGone() error { return d.file.gone() }

// StatementTimeout bounds statements, for a network that drops packets.
const StatementTimeout = 15 * time.Second
