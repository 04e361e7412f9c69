package console_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/internal/admin"
)

// remoteShop returns a shop whose console shows its admin endpoint.
func remoteShop(t *testing.T, raw string) *shop {
	s := newShop(t, raw, true)
	quiet := slog.New(slog.DiscardHandler)
	endpoint := httptest.NewServer(admin.Endpoint{
		Bus: s.Bus, Logger: quiet, DryRunner: admin.NewLocalDryRunner(s.Bus, s.stack), Describer: admin.NewLocalDescriber(s.Bus, s.Transport(), s.stack),
	}.Handler())
	t.Cleanup(endpoint.Close)
	address, err := url.Parse(endpoint.URL)
	require.NoError(t, err)
	client, err := admin.Dial(t.Context(), address, "")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close(context.Background())) })
	server := httptest.NewServer(console.New(console.Config{Transport: client, Actions: true, Logger: quiet}))
	t.Cleanup(server.Close)
	s.url = server.URL + "/"
	return s
}

// TestPause_ofADurableServiceWarnsOfNoLoss: what waits is lost with the process only if its transport is not durable.
func TestPause_ofADurableServiceWarnsOfNoLoss(t *testing.T) {
	for raw, warned := range map[string]bool{"memory://": true, "sqlite://" + filepath.Join(t.TempDir(), "shop.db"): false} {
		text := remoteShop(t, raw).get(t, "pause?"+query("group", group, "do", "pause")).text
		require.Contains(t, text, "takes no more of its messages")
		if warned {
			require.Contains(t, text, "Messages that wait are lost")
		} else {
			require.NotContains(t, text, "are lost")
		}
	}
}

// TestConsole_ofAnAdminEndpoint: leat console with the URL of an admin endpoint shows and does what the service's own does.
func TestConsole_ofAnAdminEndpoint(t *testing.T) {
	s := remoteShop(t, "memory://")
	s.poison(t, OrderPaid{Order: "o-1"}, OrderPaid{Order: "o-2"})

	require.Contains(t, s.get(t, "").text, "shop on memory")
	require.Contains(t, s.get(t, "wiring").text, "order.paid.v1 → order.paid.v2")
	require.Contains(t, s.get(t, "group?"+query("group", group)).text, "2 messages")
	require.Contains(t, s.get(t, "message?"+query("group", group, "id", s.first(t))).text, "card declined")
	require.Contains(t, s.post(t, "pause", s.get(t, "pause?"+query("group", group, "do", "pause"))).text, group+" is paused")
	require.Contains(t, s.get(t, "group?"+query("group", group)).text, "Resume the group…")
	require.Equal(t, http.StatusNotFound, s.post(t, "pause", answer{}, "group", "shop.none", "do", "pause").status)
	require.Contains(t, s.post(t, "pause", s.get(t, "pause?"+query("group", group, "do", "resume"))).text, group+" is resumed")
	s.failing.Store(false)
	require.Contains(t, s.post(t, "act", s.get(t, "confirm?"+query("group", group, "do", "dry-run"))).text, "2 of 2 would now succeed")
	require.Contains(t, s.post(t, "act", s.get(t, "confirm?"+query("group", group, "do", "replay"))).text, "2 messages replayed")
	s.awaitPoisoned(t, 0)
}
