package admin_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

func TestMove_asksOnceAndShowsProgress(t *testing.T) {
	ids := make([]string, 50_000)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	calls, shown := 0, []int{}
	moved, err := admin.Move{
		IDs: ids,
		Act: func(ctx context.Context, ids ...string) (int, error) {
			calls++
			driver.Progress(ctx, 20_000)
			driver.Progress(ctx, 20_000)
			return 45_000, fmt.Errorf("some: %w", driver.ErrNotFound)
		},
		Progress: func(done int) { shown = append(shown, done) },
	}.Run(t.Context())
	require.NoError(t, err)
	require.Equal(t, admin.Moved{Done: 45_000, Gone: 5_000}, moved)
	require.Equal(t, 1, calls, "a queue may be read from the front each time")
	require.Equal(t, []int{20_000, 40_000, 45_000}, shown)

	driver.Progress(t.Context(), 1) // nobody asks for it
	moved, err = admin.Move{Act: func(context.Context, ...string) (int, error) { panic("there is nothing to do") }}.Run(t.Context())
	require.NoError(t, err)
	require.Zero(t, moved)
}
