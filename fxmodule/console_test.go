package fxmodule_test

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/fxmodule/console"
)

func TestConsole_isServedByTheAdminEndpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leat.sock")
	app := fxtest.New(t, fxmodule.Module, fx.NopLogger, fx.Supply(slog.New(slog.DiscardHandler)), fxmodule.Console(console.ReadOnly),
		fx.Decorate(func(c fxmodule.Config) fxmodule.Config {
			c.Admin = path
			return c
		}))
	app.RequireStart()
	defer app.RequireStop()
	transport := &http.Transport{}
	transport.Dial = func(string, string) (net.Conn, error) { return net.Dial("unix", path) } //nolint:staticcheck // it is short
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/console/", nil)
	require.NoError(t, err)
	response, err := transport.RoundTrip(r)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "<h1>Overview</h1>")
	require.Contains(t, string(body), "read-only")
}

func TestConsole_isLinkedByThoseWhoImportIt(t *testing.T) {
	deps, err := exec.Command("go", "list", "-deps", "github.com/leatbus/leat/fxmodule").Output()
	require.NoError(t, err)
	require.NotContains(t, string(deps), "html/template")
}
