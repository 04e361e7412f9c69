package transports_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/memory"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestOpen_findsTheTransportByScheme(t *testing.T) {
	transport, err := transports.Open(t.Context(), "memory://?queue=7")
	require.NoError(t, err)
	require.IsType(t, &memory.Transport{}, transport)
	require.NoError(t, transport.Close(t.Context()))
}

func TestOpen_trimsWhiteSpace(t *testing.T) {
	transport, err := transports.Open(t.Context(), " memory://\n")
	require.NoError(t, err)
	require.NoError(t, transport.Close(t.Context()))
}

func TestOpen_logsThatItWaits(t *testing.T) {
	var text bytes.Buffer
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(slog.NewTextHandler(&text, nil)))
	synctest.Test(t, func(t *testing.T) {
		mux := transports.Default()
		mux.Register(func(ctx context.Context, _ *url.URL) (driver.Transport, error) {
			driver.SetLastError(ctx, errors.New("connect to roof:22: connection refused"))
			<-ctx.Done()
			return nil, ctx.Err()
		}, "pigeon")
		for _, patience := range []time.Duration{time.Second, time.Minute} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			_, err := mux.Open(ctx, "pigeon://user:s3cr3t@roof")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
		}
	})
	require.Equal(t, 1, strings.Count(text.String(), "does not answer yet"))
	require.Contains(t, text.String(), `url=pigeon://roof error="connect to roof:22: connection refused"`)
}

func TestOpen_errorsHaveNoPassword(t *testing.T) {
	for rawURL, want := range map[string]string{
		"memroy://":                    "Did you mean memory://?",
		"kafka://localhost":            `no transport for "kafka://"; there are amqp, amqps, mariadb, memory,`,
		"localhost:5672":               "the URL has no scheme before its host and port; write amqp:// before them",
		"db:5432/shop":                 "the URL has no scheme before its host and port; write postgres:// before them",
		"rabbit://localhost":           "Did you mean amqp://?",
		"":                             "the URL has no scheme",
		"memory://?qeue=7":             `Did you mean "queue"?`,
		"memory://host/path":           "write memory://",
		"memory:queue=7":               "write memory://",
		"amqp:guest:s3cr3t@localhost":  "write amqp://",
		"mysql:root:s3cr3t@h/db":       "write mysql://",
		"amqps:/shop":                  "the URL has no // behind amqps:; write amqps://",
		"postgres:/shop":               "write postgres://",
		"amqp://guest:s3cr%zzt@host/":  "write %40 for @",
		"amqp://guest:s3cr3t@ho st/":   "can't be parsed",
		"amqp://guest:s3cr3t@[::1/":    "can't be parsed",
		"amqp://guest:s3cr3t@:port/":   "can't be parsed",
		"postgres://u:s3cr3t@h/db?x=1": `unknown option "x"`,
		"sqlite:///tmp/leat.db":        `sqlite:// needs the driver; add import _ "github.com/leatbus/leat/transports/sqlite" to the main package`,
	} {
		t.Run(rawURL, func(t *testing.T) {
			_, err := transports.Open(t.Context(), rawURL)
			require.ErrorContains(t, err, want)
			require.NotContains(t, err.Error(), "s3cr")
		})
	}
}

// TestOpen_linksNoSQLite also keeps it out of whatever a service on another transport imports.
func TestOpen_linksNoSQLite(t *testing.T) {
	deps, err := exec.Command("go", "list", "-deps", "github.com/leatbus/leat/fxmodule/...").Output()
	require.NoError(t, err)
	require.Contains(t, string(deps), "github.com/leatbus/leat/transports/sql\n")
	require.NotContains(t, string(deps), "modernc.org/")
}

func TestMux_acceptsOtherTransports(t *testing.T) {
	mux := transports.Default()
	broken := errors.New("not today")
	mux.Register(func(context.Context, *url.URL) (driver.Transport, error) { return nil, broken }, "pigeon")
	require.Contains(t, mux.Schemes(), "pigeon")
	require.NotContains(t, transports.Default().Schemes(), "pigeon", "a mux is a value of its own")
	_, err := mux.Open(t.Context(), "pigeon://user:s3cr3t@roof")
	require.ErrorIs(t, err, broken)
	require.NotContains(t, err.Error(), "s3cr3t")
}
