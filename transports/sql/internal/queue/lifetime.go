package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/leatbus/leat/bus/driver"
)

// A lifetime has a transport's context, which ends with [driver.ErrClosed] when the transport closes, and its
// goroutines, which end with the context.
type lifetime struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup
}

func newLifetime() *lifetime {
	l := &lifetime{}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	return l
}

// while returns a copy of ctx that also ends with the lifetime.
func (l *lifetime) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(driver.ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// failure wraps an error for the user. It returns [driver.ErrClosed] as it is.
func failure(what string, err error) error {
	if errors.Is(err, driver.ErrClosed) {
		return driver.ErrClosed
	}
	return fmt.Errorf("sql: %s: %w", what, err)
}
