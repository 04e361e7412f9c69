package sql

import (
	"context"
	stdsql "database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/leatbus/leat/transports/internal/backoff"
)

const (
	firstBackoff   = 5 * time.Millisecond
	longestBackoff = time.Second
	recycleTimeout = time.Second
)

func newBackoff() backoff.Backoff {
	return backoff.Backoff{First: firstBackoff, Longest: longestBackoff}
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
