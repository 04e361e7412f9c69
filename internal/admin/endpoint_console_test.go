package admin_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
)

func TestEndpointConsole_isServedWithTheTokenAsPassword(t *testing.T) {
	b := newBus(t)
	e := admin.Endpoint{
		Token: token, Bus: b, Describer: admin.NewLocalDescriber(b, b.Transport(), middleware.Stack{}), Logger: slog.New(slog.DiscardHandler),
		Console: console.ReadOnly(b, middleware.Stack{}),
	}
	handler := e.Handler()
	call := func(method, path string, change func(*http.Request)) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		r.SetBasicAuth("anyone", token)
		change(r)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Contains(t, w.Header().Get("Content-Security-Policy")+w.Header().Get("Content-Type"), map[bool]string{true: "default-src 'none'", false: ""}[strings.HasPrefix(path, "/console")])
		return w
	}
	same := func(*http.Request) {}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}

	w := call(http.MethodGet, "/console/", same)
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "<h1>Overview</h1>")
	require.Equal(t, http.StatusOK, call(http.MethodGet, "/console/style.css", header("Authorization", "Bearer "+token)).Code)
	redirect := call(http.MethodGet, "/console", same)
	require.Equal(t, "/console/", redirect.Header().Get("Location"))

	for range 20 { // a browser without the token is no guess, and does not lock operators out
		w = call(http.MethodGet, "/console/", func(r *http.Request) { r.Header.Del("Authorization") })
		require.Equal(t, http.StatusUnauthorized, w.Code)
		require.Contains(t, w.Header().Get("WWW-Authenticate"), "Basic ")
	}
	require.Equal(t, http.StatusForbidden, call(http.MethodPost, "/console/act", header("Content-Type", "application/x-www-form-urlencoded")).Code)
	require.Equal(t, http.StatusUnsupportedMediaType, call(http.MethodPost, "/console/act", same).Code)
	require.Equal(t, http.StatusForbidden, call(http.MethodGet, "/console/group", header("Sec-Fetch-Site", "cross-site")).Code)
	require.Equal(t, http.StatusUnauthorized, call(http.MethodGet, "/groups", same).Code, "the endpoint's own requests take no password")
	require.Equal(t, http.StatusOK, call(http.MethodGet, "/describe", header("Authorization", "Bearer "+token)).Code)

	for range 20 {
		w = call(http.MethodGet, "/console/", func(r *http.Request) { r.SetBasicAuth("anyone", "wrong") })
	}
	require.Equal(t, http.StatusTooManyRequests, w.Code)

	e.Console = nil
	handler = e.Handler()
	w = httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/console/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	handler.ServeHTTP(w, r)
	require.Equal(t, http.StatusNotFound, w.Code)
}
