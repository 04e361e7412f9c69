package admin_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

func TestEndpoint_pausesGroupsOfItsBus(t *testing.T) {
	b := newBus(t)
	require.NoError(t, b.Handle(bus.Handler{Name: "mail", Topics: []string{"order.paid.v1"}, Bind: func(bus.Encoder) message.HandlerFunc {
		return func(*message.Message) ([]*message.Message, error) { return nil, nil }
	}}))
	paused := func() bool { return b.Health()[0].Degraded[driver.PausedByOperator] != "" }
	for _, c := range []struct {
		what, method, path, token, content, body string
		want                                     int
		paused                                   bool
		says                                     string
	}{
		{"without the token", "POST", "shop.mail/pause", "", "application/json", "{}", http.StatusUnauthorized, false, "token"},
		{"by a form", "POST", "shop.mail/pause", token, "text/plain", "{}", http.StatusUnsupportedMediaType, false, "application/json"},
		{"by a link", "GET", "shop.mail/pause", token, "", "", http.StatusMethodNotAllowed, false, ""},
		{"another group", "POST", "shop.mial/pause", token, "application/json", "{}", http.StatusNotFound, false, "Did you mean shop.mail?"},
		{"without a body", "POST", "shop.mail/pause", token, "application/json", "", http.StatusBadRequest, false, "body"},
		{"pause", "POST", "shop.mail/pause", token, "application/json", "{}", http.StatusOK, true, ""},
		{"pause again", "POST", "shop.mail/pause", token, "application/json", "{}", http.StatusOK, true, ""},
		{"resume", "POST", "shop.mail/resume", token, "application/json", "{}", http.StatusOK, false, ""},
	} {
		r := httptest.NewRequest(c.method, "/groups/"+c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", c.content)
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		w := httptest.NewRecorder()
		admin.Endpoint{Token: token, Bus: b}.Handler().ServeHTTP(w, r)
		require.Equal(t, c.want, w.Code, c.what)
		require.Contains(t, w.Body.String(), c.says, c.what)
		require.Equal(t, c.paused, paused(), c.what)
	}
}

// TestEndpoint_doctorSaysHowAPauseEnds checks the fixes by the URL that the client used.
func TestEndpoint_doctorSaysHowAPauseEnds(t *testing.T) {
	b := newBus(t)
	require.NoError(t, b.Handle(bus.Handler{Name: "mail", Topics: []string{"order.paid.v1"}, Bind: func(bus.Encoder) message.HandlerFunc {
		return func(*message.Message) ([]*message.Message, error) { return nil, nil }
	}}))
	require.NoError(t, b.SetPaused("shop.mail", true))
	for _, c := range []struct{ addr, called, want string }{
		{"/run/shop/leat.sock", "http://localhost", "unix:///run/shop/leat.sock"},
		{"127.0.0.1:7070", "http://127.0.0.1:7070", "http://127.0.0.1:7070"},
		{":7070", "https://shop.example:7070", "https://shop.example:7070"},
		{"", "http://localhost:8080", "http://localhost:8080"},        // a server of the service's own
		{"", "http://shop.example:8080", "https://shop.example:8080"}, // behind a proxy that ends TLS
	} {
		r := httptest.NewRequest(http.MethodGet, c.called+"/doctor", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		admin.Endpoint{Addr: c.addr, Token: token, Bus: b}.Handler().ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.Code, c)
		require.Contains(t, w.Body.String(), `"fix":"run leat groups resume shop.mail --url `+c.want+`"`, c)
	}
}

func TestDiagnoseHealth_saysWhatResumesAGroup(t *testing.T) {
	const url = "unix:///run/shop/leat.sock"
	of := func(degraded map[string]string) driver.Finding {
		return admin.DiagnoseHealth(bus.Health{Group: "shop.mail", State: bus.Degraded, Degraded: degraded}, url)
	}
	f := of(nil)
	require.NoError(t, f.Err)
	require.Empty(t, f.Fix)
	f = of(map[string]string{driver.PausedByBreaker: "paused since noon, and the last failed with: the mail server is away"})
	require.ErrorContains(t, f.Err, "circuit breaker: paused since noon")
	require.Contains(t, f.Fix, "end the outage that the last error names; the group goes on by itself")
	require.NotContains(t, f.Fix, "groups resume")
	f = of(map[string]string{driver.PausedByOperator: "paused", driver.PausedByBreaker: "paused", "dedup": "away", "transport": "away"})
	require.Contains(t, f.Fix, "by itself")
	require.Contains(t, f.Fix, "leat groups resume shop.mail --url "+url)
	require.Equal(t, 1, strings.Count(f.Fix, "see the service's log"))
}
