package sql

import (
	"context"
	stdsql "database/sql"
	"database/sql/driver"
)

// An executor runs statements, on a pool or in a transaction.
type executor interface {
	exec(ctx context.Context, query string, args ...any) (affected int64, err error)
	query(ctx context.Context, query string, args ...any) (rows, error)
}

// A pool is a pool of connections. Its methods may be called concurrently.
type pool interface {
	executor
	// inTx runs f in a transaction at READ COMMITTED (on SQLite, as the only writer), and commits if f returns nil.
	inTx(ctx context.Context, f func(executor) error) error
	// recycle closes idle connections, so that the next statement connects again.
	recycle()
	close()
}

// A statement is a query with its arguments.
type statement struct {
	query string
	args  []any
}

// A pipeliner is a pool that can run several statements in one round trip and one transaction.
type pipeliner interface {
	pipeline(ctx context.Context, statements []statement) (affected []int64, err error)
}

// A relaxer is a pool that can commit without waiting for the disk. Such a commit survives a crash of
// the process, but not always one of the machine.
type relaxer interface {
	relaxed() pool
}

// An exhaustible is a pool with a limited number of connections.
type exhaustible interface {
	// exhausted reports whether all connections are in use.
	exhausted() bool
	// onExtraConn runs f on an additional connection. It returns failed if the pool supports none.
	onExtraConn(ctx context.Context, failed error, f func(executor) error) error
}

// relaxed returns the pool for statements that may be lost and repeated: claims and acks.
func relaxed(db pool) pool {
	if r, ok := db.(relaxer); ok {
		return r.relaxed()
	}
	return db
}

// rows are *sql.Rows or pgx.Rows.
type rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close()
}

// collect runs a query and returns all rows.
func collect[T any](ctx context.Context, ex executor, scan func(rows, *T) error, query string, args ...any) ([]T, error) {
	r, err := ex.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var all []T
	for r.Next() {
		var v T
		if err := scan(r, &v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, r.Err()
}

// numbers runs a query whose rows are one integer each.
func numbers(ctx context.Context, ex executor, query string, args ...any) ([]int64, error) {
	return collect(ctx, ex, func(r rows, n *int64) error { return r.Scan(n) }, query, args...)
}

// number runs a query for one integer; ok is false if there is no row, or a NULL.
func number(ctx context.Context, ex executor, query string, args ...any) (n int64, ok bool, err error) {
	all, err := collect(ctx, ex, func(r rows, n *stdsql.NullInt64) error { return r.Scan(n) }, query, args...)
	if err != nil || len(all) == 0 {
		return 0, false, err
	}
	return all[0].Int64, all[0].Valid, nil
}

// stdPool implements pool with a *sql.DB.
type stdPool struct {
	db    *stdsql.DB
	owned bool
	tx    *stdsql.TxOptions
}

func (d *stdPool) exec(ctx context.Context, query string, args ...any) (int64, error) {
	return stdExec(ctx, d.db, query, args)
}

func (d *stdPool) query(ctx context.Context, query string, args ...any) (rows, error) {
	return stdQuery(ctx, d.db, query, args)
}

func (d *stdPool) inTx(ctx context.Context, f func(executor) error) error {
	return inStdTx(ctx, d.db, d.tx, f)
}

// beginner is a *sql.DB or a *sql.Conn.
type beginner interface {
	BeginTx(ctx context.Context, opts *stdsql.TxOptions) (*stdsql.Tx, error)
}

// inStdTx calls f in a transaction.
func inStdTx(ctx context.Context, db beginner, opts *stdsql.TxOptions, f func(executor) error) error {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := f(stdExecutor{tx}); err != nil {
		return err
	}
	return tx.Commit()
}

func (d *stdPool) exhausted() bool {
	stats := d.db.Stats()
	return stats.MaxOpenConnections > 0 && stats.InUse >= stats.MaxOpenConnections
}

// onExtraConn returns failed: database/sql does not expose the connector of a pool.
func (d *stdPool) onExtraConn(_ context.Context, failed error, _ func(executor) error) error {
	return failed
}

// recycle marks the idle connections as bad, one by one. Setting the maximum of idle connections to 0 and back is no
// alternative, because database/sql does not return the limit that the user has set.
func (d *stdPool) recycle() {
	ctx, cancel := context.WithTimeout(context.Background(), recycleTimeout)
	defer cancel()
	for range d.db.Stats().Idle {
		conn, err := d.db.Conn(ctx)
		if err != nil {
			return
		}
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		_ = conn.Close()
	}
}

func (d *stdPool) close() {
	if d.owned {
		_ = d.db.Close()
	}
}

// A stdQueryer is a *sql.DB, *sql.Conn or *sql.Tx.
type stdQueryer interface {
	ExecContext(ctx context.Context, query string, args ...any) (stdsql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*stdsql.Rows, error)
}

type stdExecutor struct{ q stdQueryer }

func (e stdExecutor) exec(ctx context.Context, query string, args ...any) (int64, error) {
	return stdExec(ctx, e.q, query, args)
}

func (e stdExecutor) query(ctx context.Context, query string, args ...any) (rows, error) {
	return stdQuery(ctx, e.q, query, args)
}

func stdExec(ctx context.Context, q stdQueryer, query string, args []any) (int64, error) {
	result, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func stdQuery(ctx context.Context, q stdQueryer, query string, args []any) (rows, error) {
	r, err := q.QueryContext(ctx, query, args...) //nolint:rowserrcheck // collect does
	if err != nil {
		return nil, err
	}
	return stdRows{r}, nil
}

type stdRows struct{ *stdsql.Rows }

func (r stdRows) Close() { _ = r.Rows.Close() }
