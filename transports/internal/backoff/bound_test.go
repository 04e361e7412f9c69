package backoff

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBound_leavesTheCallersDeadlineAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		minute, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, c := range []struct {
			ctx  context.Context
			own  time.Duration
			want time.Duration
		}{
			{t.Context(), 0, 15 * time.Second},
			{t.Context(), 2 * time.Second, 2 * time.Second},
			{minute, 0, time.Minute},
			{minute, 2 * time.Second, 2 * time.Second},
			{minute, time.Hour, time.Minute},
		} {
			ctx, cancel := Bound(c.ctx, c.own, 15*time.Second)
			deadline, ok := ctx.Deadline()
			cancel()
			require.True(t, ok)
			require.Equal(t, c.want, time.Until(deadline))
		}
	})
}
