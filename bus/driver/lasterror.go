package driver

import (
	"context"
	"sync/atomic"
)

// lastErrorKey is the key of a place for an error in a context.
type lastErrorKey struct{}

// WithLastError returns a context that has a place for the error of the last try of a function that opens a transport, and a
// function that returns this error, nil if no try has failed. Both may be used concurrently.
func WithLastError(ctx context.Context) (with context.Context, last func() error) {
	place := new(atomic.Pointer[error])
	return context.WithValue(ctx, lastErrorKey{}, place), func() error {
		if err := place.Load(); err != nil {
			return *err
		}
		return nil
	}
}

// SetLastError records why a try has failed, if ctx has a place for it. A function that opens a transport calls it before it tries
// again, so that the log says what it waits for. It may be called concurrently.
func SetLastError(ctx context.Context, err error) {
	if place, ok := ctx.Value(lastErrorKey{}).(*atomic.Pointer[error]); ok {
		place.Store(&err)
	}
}
