package database

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
	firstBackoff = 5 * time.Millisecond
	// LongestBackoff is the longest wait between two attempts.
	LongestBackoff = time.Second
	recycleTimeout = time.Second
)

// NewBackoff returns the waits between the attempts of a statement.
func NewBackoff() backoff.Backoff {
	return backoff.Backoff{First: firstBackoff, Longest: LongestBackoff}
}

// contextError returns the cause of ctx's end, with the latest error of the database.
func contextError(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if errors.Is(err, cause) || errors.Is(err, ctx.Err()) {
		return cause
	}
	return &waitError{cause: cause, last: err}
}

// A waitError is returned if the caller's context ended while the database failed. It wraps the context's cause only.
type waitError struct{ cause, last error }

func (e *waitError) Error() string {
	return e.cause.Error() + "; the database's last error: " + e.last.Error()
}

func (e *waitError) Unwrap() error { return e.cause }

// ConnectionLost reports whether err is a network error. It works for every driver.
func ConnectionLost(err error) bool {
	var network net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, stdsql.ErrConnDone) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &network) || strings.Contains(err.Error(), "conn closed")
}
