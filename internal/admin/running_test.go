package admin_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/admin"
)

func TestLocalURL(t *testing.T) {
	cert, key, _ := certificate(t)
	for _, c := range []struct {
		addr, token, cert string
		want, err         string
	}{
		{addr: "/run/shop/leat.sock", want: "unix:///run/shop/leat.sock"},
		{addr: "unix:/run/shop/leat.sock", want: "unix:///run/shop/leat.sock"},
		{addr: "127.0.0.1:7070", token: token, want: "http://127.0.0.1:7070"},
		{addr: "shop.example:7070", token: token, cert: cert, want: "https://shop.example:7070"},
		{addr: ":7070", token: token, cert: cert, want: "https://localhost:7070"},
		{addr: "0.0.0.0:7070", token: token, cert: cert, want: "https://localhost:7070"},
		{addr: "[::]:7070", token: token, cert: cert, want: "https://localhost:7070"},
		{addr: "127.0.0.1:0", token: token, err: "a port that the system chooses"},
		{addr: "127.0.0.1:7070", err: "set LEAT_ADMIN_TOKEN"},
		{addr: "leat.sock", err: "write the path of a unix socket"},
	} {
		e := admin.Endpoint{Addr: c.addr, Token: c.token, Cert: c.cert}
		if c.cert != "" {
			e.Key = key
		}
		u, err := e.LocalURL()
		if c.err != "" {
			require.ErrorContains(t, err, c.err, c.addr)
			continue
		}
		require.NoError(t, err, c.addr)
		require.Equal(t, c.want, u.String())
	}
}

// TestDialRunning checks that the token is sent only to a process that has the certificate of the configuration.
func TestDialRunning_takesItsOwnCertificateOnly(t *testing.T) {
	cert, key, _ := certificate(t)
	endpoint := admin.Endpoint{Addr: "127.0.0.1:0", Token: token, Cert: cert, Key: key, Bus: newBus(t), Logger: quiet()}
	server, err := endpoint.Start(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Stop(context.Background())) }()
	running := endpoint
	running.Addr = strings.TrimPrefix(server.URL(), "https://")
	client, err := running.DialRunning(t.Context())
	require.NoError(t, err)
	require.NoError(t, client.Close(t.Context()))

	other, otherKey, _ := certificate(t)
	wrong := running
	wrong.Cert, wrong.Key = other, otherKey
	_, err = wrong.DialRunning(t.Context())
	require.ErrorContains(t, err, "another certificate than the file of LEAT_ADMIN_CERT")
	wrong = running
	wrong.Cert, wrong.Key = key, cert
	_, err = wrong.DialRunning(t.Context())
	require.ErrorContains(t, err, "has no certificate")
	wrong = running
	wrong.Token = "fedcba9876543210"
	_, err = wrong.DialRunning(t.Context())
	require.ErrorContains(t, err, "the token is missing or wrong")
	require.NotContains(t, err.Error(), "is a process of the service running")
}

func TestDialRunning_saysThatNothingRuns(t *testing.T) {
	_, err := admin.Endpoint{Addr: filepath.Join(t.TempDir(), "s")}.DialRunning(t.Context())
	require.ErrorContains(t, err, "is a process of the service running here, with the same LEAT_ADMIN?")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = admin.Endpoint{Addr: filepath.Join(t.TempDir(), "s")}.DialRunning(ended)
	require.ErrorIs(t, err, context.Canceled)
	require.NotContains(t, err.Error(), "running here", "the command says how long it has waited")
}
