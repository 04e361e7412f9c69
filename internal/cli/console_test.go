package cli

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/memory"
	_ "github.com/leatbus/leat/transports/sqlite"
)

func TestConsole_servesOnlyBelowItsToken(t *testing.T) {
	out, in := io.Pipe()
	e := &Env{Program: "leat", Stdout: in, Stderr: io.Discard}
	e.Open = func(ctx context.Context) (driver.Transport, error) {
		return transports.Open(ctx, "sqlite:"+filepath.Join(t.TempDir(), "shop.db"))
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	ended := make(chan int)
	go func() {
		ended <- Run(ctx, new(Commands), e, "", []string{"console"})
	}()
	address, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	address = strings.TrimSpace(address)
	get := func(address string) (int, string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(body)
	}
	status, body := get(address)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "There is no group yet.")
	status, _ = get(strings.TrimSuffix(address, "/"))
	require.Equal(t, http.StatusOK, status)
	root := address[:strings.Index(address[len("http://"):], "/")+len("http://")]
	for _, path := range []string{"/", "/wrong/", "//", address[len(root):len(address)-2] + "/"} {
		status, _ = get(root + path)
		require.Equal(t, http.StatusForbidden, status, path)
	}
	interrupt()
	require.Zero(t, <-ended)
	http.DefaultClient.CloseIdleConnections()
}

func TestConsole_refusesWhatCanNotWork(t *testing.T) {
	for want, args := range map[string][]string{
		"write a loopback address and a port": {"console", "--listen", "0.0.0.0:8080"},
		"inside the service's process":        {"console"},
	} {
		var said bytes.Buffer
		e := &Env{Program: "leat", Stdout: io.Discard, Stderr: &said}
		e.Open = func(context.Context) (driver.Transport, error) { return memory.New(memory.Config{}), nil }
		require.Equal(t, ExitUsage, Run(t.Context(), new(Commands), e, "", args))
		require.Contains(t, said.String(), want)
	}
}
