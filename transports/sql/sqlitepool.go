package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/leatbus/leat/transports/internal/backoff"
)

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
		if !backoff.Sleep(ctx, time.Millisecond/2+rand.N(time.Millisecond)) {
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
