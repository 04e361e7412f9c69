package fxmodule_test

import (
	"context"
	"log/slog"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

func TestModule_warnsOfConnectionsWithoutVerifiedTLS(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	t.Setenv("PGSSLROOTCERT", "")
	fake := func(context.Context, *url.URL) (bus.Transport, error) { return memory.New(memory.Config{}), nil }
	for rawURL, fix := range map[string]string{
		"memory://":                                       "",
		"sqlite:///var/lib/leat.db":                       "",
		"amqp://guest:S3cret@127.0.0.1:5672/":             "",
		"amqp://guest:S3cret@[::1]/":                      "",
		"amqp://guest:S3cret@localhost/":                  "",
		"amqp://guest:S3cret@rabbit/vhost":                "write amqps://",
		"amqps://guest:S3cret@rabbit/":                    "",
		"amqp://u:S3cret@localhost:5672,10.0.0.1:5672/":   "write amqps://",
		"postgres://u:S3cret@db/shop":                     "write sslmode=verify-full",
		"postgres://u@db/shop?sslmode=require":            "write sslmode=verify-full",
		"postgres://u@db/shop?sslmode=verify-full":        "",
		"postgresql://u@db/shop?sslmode=prefer":           "write sslmode=verify-full",
		"postgres://u@db/d?sslmode=require&sslrootcert=x": "",
		"mysql://u:S3cret@db/shop":                        "write tls=true",
		"mariadb://u@db/shop?tls=skip-verify":             "write tls=true",
		"mysql://u@db/shop?tls=true":                      "",
		"mysql://u@db/shop?socket=/run/mysqld.sock":       "",
	} {
		t.Setenv("LEAT_URL", rawURL)
		var log testenv.Buffer
		app := fxtest.New(t, fx.NopLogger, fxmodule.Module,
			fx.Provide(func() *slog.Logger { return slog.New(slog.NewTextHandler(&log, nil)) }),
			fxmodule.Transport(fake, "memory", "sqlite", "amqp", "amqps", "postgres", "postgresql", "mysql", "mariadb"))
		app.RequireStart().RequireStop()
		if fix == "" {
			require.NotContains(t, log.String(), "verified TLS", rawURL)
			continue
		}
		require.Equal(t, 1, strings.Count(log.String(), "connection without verified TLS"), rawURL)
		require.Contains(t, log.String(), "variable=LEAT_URL")
		require.Contains(t, log.String(), fix, rawURL)
		require.NotContains(t, log.String(), "S3cret")
	}
}

func TestModule_warnsOfAnUnverifiedRedis(t *testing.T) {
	t.Setenv("LEAT_REDIS_URL", "redis://:S3cret@redis.invalid:6379/0")
	var log testenv.Buffer
	app := fxtest.New(t, fx.NopLogger, fxmodule.Module,
		fx.Provide(func() *slog.Logger { return slog.New(slog.NewTextHandler(&log, nil)) }))
	app.RequireStart().RequireStop()
	require.Contains(t, log.String(), `variable=LEAT_REDIS_URL url=redis://redis.invalid:6379/0 fix="write rediss://"`)
}
