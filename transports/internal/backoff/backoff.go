// Package backoff computes the delays between retries.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// A Backoff computes the pause before the next try. The pause begins with First and doubles with each try, up to Longest. Each is
// shortened at random by up to a half, so that processes that failed together do not retry together. It belongs to one
// goroutine.
type Backoff struct {
	First, Longest time.Duration
	last           time.Duration
}

// Next returns the pause before the next try.
func (b *Backoff) Next() time.Duration {
	b.last = min(max(2*b.last, b.First), b.Longest)
	return b.last/2 + rand.N(b.last/2+1)
}

// Wait blocks for the pause before the next try. It returns false if ctx is done first.
func (b *Backoff) Wait(ctx context.Context) bool { return Sleep(ctx, b.Next()) }

// Reset makes the next pause the first one again.
func (b *Backoff) Reset() { b.last = 0 }

// AtLongest reports whether the pause has stopped growing.
func (b *Backoff) AtLongest() bool { return b.last >= b.Longest }

// Sleep blocks for d. It returns false if ctx is done first.
func Sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
