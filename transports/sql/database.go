package sql

import (
	"context"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
)

// database is a pool of connections and the tables that are reached by it. Everything else in this package that
// works on the tables does so over one of these. It retries nothing by itself. Its methods may be called
// concurrently.
type database struct {
	*statements
	pool    pool
	relaxed pool // the same, for commits that need not wait for the disk
	link    *link
	arrays  bool // an insert may pass its messages as arrays

	// What prepare finds out; nothing writes them afterwards.
	born    int64 // when the tables were made: no others share it
	file    *sqliteFile
	tellsTx bool // the server says whether a transaction is open, as MariaDB does
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

// newest changes when something is inserted, and sometimes before that is committed.
func (d *database) newest(ctx context.Context) (int64, error) {
	query := `SELECT max(id) FROM {messages}`
	if d.name == Postgres {
		query = `SELECT last_value FROM {messages_id_seq}`
	}
	n, _, err := number(ctx, d.pool, d.sql(query))
	return n, err
}

// noteReturns notes that messages come back to the group's key queues but from a consumer's hands; [keyLows] says what
// for. It is called in the same transaction, and locks the group until that is committed.
func (d *database) noteReturns(ctx context.Context, tx executor, g group) error {
	if d.name != Postgres || g.order == driver.Unordered {
		return nil
	}
	_, err := tx.exec(ctx, d.sql(`UPDATE {turns} SET created_at = created_at + 1 WHERE group_id = ?`), g.id)
	return err
}

// returning runs f, which makes messages come back to the group's key queues, and notes that if it matters.
func (d *database) returning(ctx context.Context, g group, f func(executor) error) error {
	if d.name != Postgres || g.order == driver.Unordered {
		return f(d.pool)
	}
	return d.pool.inTx(ctx, func(tx executor) error {
		if err := d.noteReturns(ctx, tx, g); err != nil {
			return err
		}
		return f(tx)
	})
}

// retry runs f until it succeeds, fails for good, or ctx is done.
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
		if !backoff.Sleep(ctx, wait.Next()) {
			return contextError(ctx, err)
		}
	}
}

// retryAlways runs f until it succeeds or ctx is done: for what must be done some time.
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

// temporary reports whether trying again makes sense, and lets go of connections that will not work.
func (d *database) temporary(err error) bool {
	if connectionLost(err) {
		d.link.fails(err)
	}
	if d.readOnly(err) {
		d.pool.recycle() // they lead to a server that is no longer the primary
	}
	return d.retryable(err)
}

// explain adds what to do about an error whose text does not say it.
func (d *database) explain(err error) error {
	switch code := postgresCode(err); {
	case d.name != Postgres:
	case code == "26000", code == "42P05":
		return fmt.Errorf("%w; behind pgbouncer in transaction mode, set default_query_exec_mode=exec, an option of the URL", err)
	}
	return err
}

// statementTimeout is for a network that swallows packets.
const statementTimeout = 15 * time.Second
