package sql

import (
	"context"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
)

// A database is a pool of connections and one set of tables. All other types of this package access the tables
// through it. Only retry and retryAlways retry. Its methods may be called concurrently.
type database struct {
	*statements
	pool    pool
	relaxed pool // the same connections, for commits that need not wait for the disk
	link    *link
	arrays  bool // an insert may pass its messages as arrays

	// Set by schema.prepare and not written afterwards.
	born             int64 // when the tables were created, in microseconds; identifies them
	file             *sqliteFile
	hasInTransaction bool // the server has @@in_transaction, as MariaDB does
}

func newDatabase(over pool, cfg Config) (*database, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	statements, err := newStatements(cfg)
	if err != nil {
		return nil, err
	}
	_, arrays := over.(*pgxPool)
	return &database{statements: statements, pool: over, relaxed: relaxed(over), link: new(link), arrays: arrays}, nil
}

// newestOfSequence is the highest id. Before the first one, last_value is 1 too.
const newestOfSequence = `CASE WHEN s.is_called THEN s.last_value ELSE 0 END`

// newest returns the highest id, 0 if there was never a message. It changes when messages are inserted, sometimes before they are
// committed.
func (d *database) newest(ctx context.Context) (int64, error) {
	query := `SELECT max(id) FROM {messages}`
	if d.name == Postgres {
		query = `SELECT ` + newestOfSequence + ` FROM {messages_id_seq} s`
	}
	n, _, err := number(ctx, d.pool, d.sql(query))
	return n, err
}

// markReturns records that messages return to the group's key queues from other states than being claimed; [keyLows] documents why. It
// must be called in the same transaction, and locks the group until that ends.
func (d *database) markReturns(ctx context.Context, tx executor, g group) error {
	if d.name != Postgres || g.order == driver.Unordered {
		return nil
	}
	_, err := tx.exec(ctx, d.sql(`UPDATE {turns} SET created_at = created_at + 1 WHERE group_id = ?`), g.id)
	return err
}

// returning runs f, which returns messages to the group's key queues, and calls markReturns in the same transaction if that is needed.
func (d *database) returning(ctx context.Context, g group, f func(executor) error) error {
	if d.name != Postgres || g.order == driver.Unordered {
		return f(d.pool)
	}
	return d.pool.inTx(ctx, func(tx executor) error {
		if err := d.markReturns(ctx, tx, g); err != nil {
			return err
		}
		return f(tx)
	})
}

// retry runs f until it succeeds, returns an error that is not temporary, or ctx is done.
func (d *database) retry(ctx context.Context, f func(ctx context.Context) error) error {
	wait := newBackoff()
	for {
		err := f(ctx)
		if err == nil {
			d.link.works()
			return nil
		}
		if ctx.Err() != nil {
			return contextError(ctx, err)
		}
		if !d.temporary(err) {
			return d.explain(err)
		}
		driver.SetLastError(ctx, err)
		if !backoff.Sleep(ctx, wait.Next()) {
			return contextError(ctx, err)
		}
	}
}

// retryAlways runs f until it succeeds or ctx is done, whatever the error. It calls report when f has failed several times.
func (d *database) retryAlways(ctx context.Context, f func(ctx context.Context) error, report func(error)) error {
	wait := newBackoff()
	for {
		err := f(ctx)
		if err == nil {
			d.link.works()
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		d.temporary(err)
		pause := wait.Next()
		if pause > longestBackoff/4 {
			report(err)
		}
		if !backoff.Sleep(ctx, pause) {
			return err
		}
	}
}

// temporary reports whether err is worth a retry. It also records a lost connection, and closes idle connections to a server that has
// become read-only.
func (d *database) temporary(err error) bool {
	if connectionLost(err) {
		d.link.fails(err)
	}
	if d.readOnly(err) {
		d.pool.recycle() // the server is no longer the primary
	}
	return d.retryable(err)
}

// explain adds a hint to errors whose text has none.
func (d *database) explain(err error) error {
	switch code := postgresCode(err); {
	case d.name != Postgres:
	case code == "26000", code == "42P05":
		return fmt.Errorf("%w; behind pgbouncer in transaction mode, set default_query_exec_mode=exec, an option of the URL", err)
	}
	return err
}

// statementTimeout bounds statements, for a network that drops packets.
const statementTimeout = 15 * time.Second
