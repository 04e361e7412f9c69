package fxmodule_test

import (
	"context"
	"log/slog"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

// Transports that are opened by their URL, and the Redis client, write to the application's logger.
func TestLogger_isTheApplications(t *testing.T) {
	t.Setenv("LEAT_URL", "own://")
	t.Setenv("LEAT_REDIS_URL", "redis://127.0.0.1:1")
	var log testenv.Buffer
	own := slog.New(slog.NewJSONHandler(&log, nil))
	var given *slog.Logger
	app := fx.New(fx.NopLogger, fxmodule.Module,
		fx.Provide(func() *slog.Logger { return own }),
		fxmodule.Transport(func(ctx context.Context, _ *url.URL) (driver.Transport, error) {
			given = driver.LoggerFrom(ctx)
			return memory.New(memory.Config{}), nil
		}, "own"),
		fx.Invoke(func(*bus.Bus) {}))
	require.NoError(t, app.Err())
	require.Same(t, own, given)
	require.Same(t, slog.Default(), driver.LoggerFrom(t.Context()), "and slog's without one")
	require.NoError(t, app.Start(t.Context()))
	defer func() { require.NoError(t, app.Stop(context.Background())) }()
}
