package backoff

import (
	"context"
	"time"
)

// Bound returns ctx with a timeout for the first connection: the transport's if that is not 0, else the default if ctx has no
// deadline.
func Bound(ctx context.Context, own, unless time.Duration) (context.Context, context.CancelFunc) {
	if own == 0 {
		if _, bounded := ctx.Deadline(); bounded {
			return context.WithCancel(ctx)
		}
		own = unless
	}
	return context.WithTimeout(ctx, own)
}
