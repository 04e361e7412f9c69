package admin_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/admin"
)

func TestEndpoint_pausesGroupsOfItsBus(t *testing.T) {
	b := newBus(t)
	require.NoError(t, b.Handle(bus.Handler{Name: "mail", Topics: []string{"order.paid.v1"}, Bind: func(bus.Encoder) message.HandlerFunc {
		return func(*message.Message) ([]*message.Message, error) { return nil, nil }
	}}))
	paused := func() bool { return b.Health()[0].Degraded["operator"] != "" }
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
