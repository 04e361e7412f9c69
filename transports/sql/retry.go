package sql

import (
	"context"
	stdsql "database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"time"
)

const (
	firstBackoff   = 5 * time.Millisecond
	longestBackoff = time.Second
	recycleTimeout = time.Second
)

// backoff is the wait before the next try: growing, and jittered, so that those who failed together
// do not come back together. The zero backoff is ready.
type backoff struct{ last time.Duration }

func (b *backoff) next() time.Duration {
	b.last = min(max(2*b.last, firstBackoff), longestBackoff)
	return b.last/2 + rand.N(b.last/2)
}

func (b *backoff) reset() { b.last = 0 }

// sleep waits, and reports whether it was not interrupted.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// retry runs f until it succeeds, fails for good, or ctx is done.
func (d *database) retry(ctx context.Context, f func(ctx context.Context) error) error {
	var wait backoff
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
		if !sleep(ctx, wait.next()) {
			return contextError(ctx, err)
		}
	}
}

// retryAlways runs f until it succeeds or ctx is done: for what must be done some time.
func (d *database) retryAlways(ctx context.Context, f func(ctx context.Context) error, report func(error)) error {
	var wait backoff
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
		pause := wait.next()
		if pause > longestBackoff/4 {
			report(err)
		}
		if !sleep(ctx, pause) {
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

// contextError says that ctx is over, and what the database last said.
func contextError(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if errors.Is(err, cause) || errors.Is(err, ctx.Err()) {
		return cause
	}
	return &waitError{cause: cause, last: err}
}

// waitError is a wait for the database that the caller's context ended.
type waitError struct{ cause, last error }

func (e *waitError) Error() string {
	return e.cause.Error() + "; the database last said: " + e.last.Error()
}

func (e *waitError) Unwrap() error { return e.cause }

// connectionLost recognizes what every driver lets through from the network.
func connectionLost(err error) bool {
	var network net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, stdsql.ErrConnDone) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &network) || strings.Contains(err.Error(), "conn closed")
}
