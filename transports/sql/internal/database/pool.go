package database

import (
	"context"
	stdsql "database/sql"
	"database/sql/driver"
)

// An Executor runs statements, on a pool or in a transaction.
type Executor interface {
	// Exec runs a statement, and returns how many rows it has changed.
	Exec(ctx context.Context, query string, args ...any) (affected int64, err error)
	// Query runs a query. The caller closes the rows; Collect does that.
	Query(ctx context.Context, query string, args ...any) (Rows, error)
}

// A Pool is a pool of connections. Its methods may be called concurrently.
type Pool interface {
	Executor
	// InTx runs f in a transaction at READ COMMITTED (on SQLite, as the only writer), and commits if f returns nil.
	InTx(ctx context.Context, f func(Executor) error) error
	// recycle closes idle connections, so that the next statement connects again.
	recycle()
	// Close closes the connections, unless the user owns them.
	Close()
}

// A Statement is a query with its arguments.
type Statement struct {
	Query string
	Args  []any
}

// A Pipeliner is a pool that can run several statements in one round trip and one transaction.
type Pipeliner interface {
	// Pipeline returns how many rows each statement has changed, or an error, and then none has changed any.
	Pipeline(ctx context.Context, statements []Statement) (affected []int64, err error)
}

// A relaxer is a pool that can commit without waiting for the disk. Such a commit survives a crash of
// the process, but not always one of the machine.
type relaxer interface {
	relaxed() Pool
}

// An Exhaustible is a pool with a limited number of connections.
type Exhaustible interface {
	// Exhausted reports whether all connections are in use.
	Exhausted() bool
	// OnExtraConn runs f on an additional connection. It returns failed if the pool supports none.
	OnExtraConn(ctx context.Context, failed error, f func(Executor) error) error
}

// relaxed returns the pool for statements that may be lost and repeated: claims and acks.
func relaxed(db Pool) Pool {
	if r, ok := db.(relaxer); ok {
		return r.relaxed()
	}
	return db
}

// Rows are *sql.Rows or pgx.Rows.
type Rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close()
}

// Collect runs a query and returns all rows.
func Collect[T any](ctx context.Context, ex Executor, scan func(Rows, *T) error, query string, args ...any) ([]T, error) {
	r, err := ex.Query(ctx, query, args...)
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

// Numbers runs a query whose rows are one integer each.
func Numbers(ctx context.Context, ex Executor, query string, args ...any) ([]int64, error) {
	return Collect(ctx, ex, func(r Rows, n *int64) error { return r.Scan(n) }, query, args...)
}

// Number runs a query for one integer; ok is false if there is no row, or a NULL.
func Number(ctx context.Context, ex Executor, query string, args ...any) (n int64, ok bool, err error) {
	all, err := Collect(ctx, ex, func(r Rows, n *stdsql.NullInt64) error { return r.Scan(n) }, query, args...)
	if err != nil || len(all) == 0 {
		return 0, false, err
	}
	return all[0].Int64, all[0].Valid, nil
}

// A StdPool implements [Pool] with a *sql.DB.
type StdPool struct {
	DB    *stdsql.DB
	Tx    *stdsql.TxOptions // of transactions
	owned bool
}

// Exec implements [Pool].
func (d *StdPool) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return stdExec(ctx, d.DB, query, args)
}

// Query implements [Pool].
func (d *StdPool) Query(ctx context.Context, query string, args ...any) (Rows, error) {
	return stdQuery(ctx, d.DB, query, args)
}

// InTx implements [Pool].
func (d *StdPool) InTx(ctx context.Context, f func(Executor) error) error {
	return inStdTx(ctx, d.DB, d.Tx, f)
}

// beginner is a *sql.DB or a *sql.Conn.
type beginner interface {
	BeginTx(ctx context.Context, opts *stdsql.TxOptions) (*stdsql.Tx, error)
}

// inStdTx calls f in a transaction.
func inStdTx(ctx context.Context, db beginner, opts *stdsql.TxOptions, f func(Executor) error) error {
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

// Exhausted implements [Exhaustible].
func (d *StdPool) Exhausted() bool {
	stats := d.DB.Stats()
	return stats.MaxOpenConnections > 0 && stats.InUse >= stats.MaxOpenConnections
}

// OnExtraConn returns failed: database/sql does not expose the connector of a pool.
func (d *StdPool) OnExtraConn(_ context.Context, failed error, _ func(Executor) error) error {
	return failed
}

// recycle marks the idle connections as bad, one by one. Setting the maximum of idle connections to 0 and back is no
// alternative, because database/sql does not return the limit that the user has set.
func (d *StdPool) recycle() {
	ctx, cancel := context.WithTimeout(context.Background(), recycleTimeout)
	defer cancel()
	for range d.DB.Stats().Idle {
		conn, err := d.DB.Conn(ctx)
		if err != nil {
			return
		}
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		_ = conn.Close()
	}
}

// Close implements [Pool].
func (d *StdPool) Close() {
	if d.owned {
		_ = d.DB.Close()
	}
}

// A stdQueryer is a *sql.DB, *sql.Conn or *sql.Tx.
type stdQueryer interface {
	ExecContext(ctx context.Context, query string, args ...any) (stdsql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*stdsql.Rows, error)
}

type stdExecutor struct{ q stdQueryer }

func (e stdExecutor) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return stdExec(ctx, e.q, query, args)
}

func (e stdExecutor) Query(ctx context.Context, query string, args ...any) (Rows, error) {
	return stdQuery(ctx, e.q, query, args)
}

func stdExec(ctx context.Context, q stdQueryer, query string, args []any) (int64, error) {
	result, err := q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func stdQuery(ctx context.Context, q stdQueryer, query string, args []any) (Rows, error) {
	r, err := q.QueryContext(ctx, query, args...) //nolint:rowserrcheck // collect does
	if err != nil {
		return nil, err
	}
	return stdRows{r}, nil
}

type stdRows struct{ *stdsql.Rows }

func (r stdRows) Close() { _ = r.Rows.Close() }
