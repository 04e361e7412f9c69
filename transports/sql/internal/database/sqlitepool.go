package database

import (
	"context"
	stdsql "database/sql"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/leatbus/leat/transports/internal/backoff"
)

// sqlitePool implements [Pool] with one connection to a file. SQLite has one writer at a time. Waiting for the
// connection is fair and has no delay, while SQLite's own waiting sleeps.
type sqlitePool struct {
	StdPool
	wait *waitForDisk
	want bool // whether commits wait for the disk
}

// waitForDisk is the current setting of the connection.
type waitForDisk struct {
	mu sync.Mutex
	on bool
}

func newSQLitePool(db *stdsql.DB) *sqlitePool {
	return &sqlitePool{
		StdPool: StdPool{DB: db, owned: true},
		wait:    &waitForDisk{on: true},
		want:    true,
	}
}

func (d *sqlitePool) relaxed() Pool {
	return &sqlitePool{StdPool: d.StdPool, wait: d.wait, want: false}
}

// conn returns the connection, and changes its setting if necessary.
func (d *sqlitePool) conn(ctx context.Context) (*stdsql.Conn, error) {
	conn, err := d.DB.Conn(ctx)
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

func (d *sqlitePool) Exec(ctx context.Context, query string, args ...any) (affected int64, err error) {
	err = d.withConn(ctx, func(conn *stdsql.Conn) error {
		affected, err = stdExec(ctx, conn, query, args)
		return err
	})
	return affected, err
}

func (d *sqlitePool) Query(ctx context.Context, query string, args ...any) (r Rows, err error) {
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

func (d *sqlitePool) InTx(ctx context.Context, f func(Executor) error) error {
	return d.withConn(ctx, func(conn *stdsql.Conn) error { return inStdTx(ctx, conn, nil, f) })
}

// withConn calls f with the connection, and retries while another process writes.
func (d *sqlitePool) withConn(ctx context.Context, f func(*stdsql.Conn) error) error {
	conn, err := d.conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return whileBusy(ctx, func() error { return f(conn) })
}

// whileBusy retries f while another process writes. Such transactions are short. SQLite's own waiting sleeps ever
// longer, up to 100 ms, most of it after the other transaction has ended.
func whileBusy(ctx context.Context, f func() error) error {
	for deadline := time.Now().Add(busyTimeout); ; {
		err := f()
		if err == nil || !sqliteRetryable(err) || time.Now().After(deadline) {
			return err
		}
		if !backoff.Sleep(ctx, time.Millisecond/2+rand.N(time.Millisecond)) {
			return err
		}
	}
}

// busyTimeout is how long a statement waits for other processes.
const busyTimeout = 10 * time.Second

// connRows releases its connection when it is closed.
type connRows struct {
	Rows
	conn *stdsql.Conn
}

func (r connRows) Close() {
	r.Rows.Close()
	_ = r.conn.Close()
}
