package sql

import (
	"context"
	stdsql "database/sql"
	"database/sql/driver"
	"errors"
	"math/rand/v2"
	"sync"
	"time"
)

// executor runs statements, on a pool or in a transaction.
type executor interface {
	exec(ctx context.Context, query string, args ...any) (affected int64, err error)
	query(ctx context.Context, query string, args ...any) (rows, error)
}

// database is a pool of connections. Its methods may be called concurrently.
type pool interface {
	executor
	// inTx runs f in a transaction at READ COMMITTED (SQLite: as the only writer).
	inTx(ctx context.Context, f func(executor) error) error
	// recycle closes idle connections, so that the next statement looks for the server anew.
	recycle()
	close()
}

// statement is a query with its arguments.
type statement struct {
	query string
	args  []any
}

// pipeliner is a database that runs some statements in one round trip, all or none.
type pipeliner interface {
	pipeline(ctx context.Context, statements []statement) (affected []int64, err error)
}

// relaxer is a database that can commit without waiting for the disk. What is committed so outlives
// the process, but not always the machine.
type relaxer interface {
	relaxed() pool
}

// exhaustible is a pool whose connections may all be in use.
type exhaustible interface {
	exhausted() bool
	// aside runs f on a connection beyond the pool's, or returns failed if none can be made.
	aside(ctx context.Context, failed error, f func(executor) error) error
}

// relaxed is for what may be done twice: claims and acks.
func relaxed(db pool) pool {
	if r, ok := db.(relaxer); ok {
		return r.relaxed()
	}
	return db
}

// rows is what *sql.Rows and pgx.Rows have in common.
type rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close()
}

// collect reads all rows.
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

// numbers reads rows of one integer.
func numbers(ctx context.Context, ex executor, query string, args ...any) ([]int64, error) {
	return collect(ctx, ex, func(r rows, n *int64) error { return r.Scan(n) }, query, args...)
}

// number reads one integer; ok is false where there is no row, or a NULL.
func number(ctx context.Context, ex executor, query string, args ...any) (n int64, ok bool, err error) {
	all, err := collect(ctx, ex, func(r rows, n *stdsql.NullInt64) error { return r.Scan(n) }, query, args...)
	if err != nil || len(all) == 0 {
		return 0, false, err
	}
	return all[0].Int64, all[0].Valid, nil
}

// stdPool is a *sql.DB.
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
	tx, err := d.db.BeginTx(ctx, d.tx)
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

// aside has no way to another connection: database/sql does not tell the pool's address.
func (d *stdPool) aside(_ context.Context, failed error, _ func(executor) error) error {
	return failed
}

// recycle tells the pool that its idle connections are bad, one by one: the limits of a pool that
// is the user's are not ours to change.
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

// sqlitePool is one connection to a file. SQLite has one writer at a time; queueing for it here
// is fair and costs nothing, where SQLite's own waiting sleeps.
type sqlitePool struct {
	stdPool
	wait *waitForDisk
	want bool // commits wait for the disk
}

// waitForDisk is how the one connection is set.
type waitForDisk struct {
	mu sync.Mutex
	on bool
}

func newSQLitePool(db *stdsql.DB) *sqlitePool {
	return &sqlitePool{
		stdPool: stdPool{db: db, owned: true},
		wait:    &waitForDisk{on: true},
		want:    true,
	}
}

func (d *sqlitePool) relaxed() pool {
	return &sqlitePool{stdPool: d.stdPool, wait: d.wait, want: false}
}

// conn takes the connection and sets it as wanted.
func (d *sqlitePool) conn(ctx context.Context) (*stdsql.Conn, error) {
	conn, err := d.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	d.wait.mu.Lock()
	defer d.wait.mu.Unlock()
	if d.wait.on == d.want {
		return conn, nil
	}
	pragma := "PRAGMA synchronous = NORMAL"
	if d.want {
		pragma = "PRAGMA synchronous = FULL"
	}
	if _, err := conn.ExecContext(ctx, pragma); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	d.wait.on = d.want
	return conn, nil
}

func (d *sqlitePool) exec(ctx context.Context, query string, args ...any) (affected int64, err error) {
	err = d.patiently(ctx, func(conn *stdsql.Conn) error {
		affected, err = stdExec(ctx, conn, query, args)
		return err
	})
	return affected, err
}

func (d *sqlitePool) query(ctx context.Context, query string, args ...any) (r rows, err error) {
	conn, err := d.conn(ctx)
	if err != nil {
		return nil, err
	}
	err = whileBusy(ctx, func() error {
		r, err = stdQuery(ctx, conn, query, args)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return connRows{r, conn}, nil
}

func (d *sqlitePool) inTx(ctx context.Context, f func(executor) error) error {
	return d.patiently(ctx, func(conn *stdsql.Conn) error {
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // does nothing after Commit
		if err := f(stdExecutor{tx}); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// patiently does something with the connection, and again while another process writes.
func (d *sqlitePool) patiently(ctx context.Context, f func(*stdsql.Conn) error) error {
	conn, err := d.conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return whileBusy(ctx, func() error { return f(conn) })
}

// whileBusy waits for other processes' transactions, which are short. SQLite itself would wait ever
// longer for each, up to 100 ms, and so wait most of the time for nobody.
func whileBusy(ctx context.Context, f func() error) error {
	for patience := time.Now().Add(busyPatience); ; {
		err := f()
		if err == nil || !sqliteRetryable(err) || time.Now().After(patience) {
			return err
		}
		if !sleep(ctx, time.Millisecond/2+rand.N(time.Millisecond)) {
			return err
		}
	}
}

// busyPatience is how long a statement waits for other processes.
const busyPatience = 10 * time.Second

// connRows gives its connection back with its end.
type connRows struct {
	rows
	conn *stdsql.Conn
}

func (r connRows) Close() {
	r.rows.Close()
	_ = r.conn.Close()
}

// stdQueryer is what *sql.DB, *sql.Conn and *sql.Tx have in common.
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
