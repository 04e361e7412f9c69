package console_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/fxmodule/console"
)

func TestWiring_isAGraphAndJSON(t *testing.T) {
	eachTransport(t, func(t *testing.T, s *shop) {
		const hostile = `other."]; click <b>#`
		other, err := s.Transport().Subscribe(t.Context(), driver.Subscription{Group: hostile, Topics: []string{"order.>"}, Concurrency: 1})
		if err == nil { // a transport may refuse the name
			defer func() { require.NoError(t, other.Close(t.Context())) }()
			s.awaitText(t, "wiring.mmd", "g1")
		}
		graph := s.get(t, "wiring.mmd")
		require.Equal(t, `attachment; filename="wiring.mmd"`, graph.header.Get("Content-Disposition"))
		require.Regexp(t, `(?s)^flowchart LR\n.*  g\d\["`+group+`"\]\n.*  t\d\(\["order.paid\[\.\*\]"\]\)\n.*  t\d --> g\d\n$`, graph.body)
		require.NotContains(t, graph.body, `click <`)

		var d struct {
			Service, Transport string
			Groups             []struct{ Group string }
		}
		require.NoError(t, json.Unmarshal([]byte(s.get(t, "wiring.json").body), &d))
		require.Equal(t, "shop", d.Service)
		require.Equal(t, group, d.Groups[0].Group)
		require.Contains(t, s.get(t, "wiring").body, `href="wiring.mmd"`)

		server := httptest.NewServer(console.New(console.Config{Transport: s.Transport(), Logger: slog.New(slog.DiscardHandler)}))
		defer server.Close()
		s.url = server.URL + "/"
		require.Contains(t, s.get(t, "wiring.mmd").body, group, "the message system knows it")
		require.NotContains(t, s.get(t, "wiring").body, "wiring.json")
		require.Equal(t, http.StatusNotFound, send(t, http.MethodGet, s.url+"wiring.json", nil).status)
	})
}
