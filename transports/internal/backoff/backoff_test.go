package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/internal/backoff"
)

func TestBackoff_growsUpToItsLongestWithJitter(t *testing.T) {
	b := backoff.Backoff{First: 50 * time.Millisecond, Longest: time.Second}
	pauses := make(map[time.Duration]bool)
	for range 100 {
		b.Reset()
		for _, ms := range []int{50, 100, 200, 400, 800, 1000, 1000} {
			around := time.Duration(ms) * time.Millisecond
			pause := b.Next()
			require.GreaterOrEqual(t, pause, around/2)
			require.LessOrEqual(t, pause, around)
			pauses[pause] = true
		}
	}
	require.Greater(t, len(pauses), 600, "those who failed together must not come back together")
}

func TestBackoff_waitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := backoff.Backoff{First: time.Second, Longest: time.Minute}
		start := time.Now()
		require.True(t, b.Wait(t.Context()))
		require.GreaterOrEqual(t, time.Since(start), time.Second/2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.False(t, b.Wait(ctx))
	})
}
