package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/leatbus/leat/internal/testenv"
)

// TestManagement_saysWhyItDoesNotAnswer checks the error and the fix if RabbitMQ's management API does not respond.
func TestManagement_saysWhyItDoesNotAnswer(t *testing.T) {
	broker := testenv.WithOption(t, testenv.RabbitMQ(t), "exchange", unique())
	service := serve(t, t.Cleanup, broker)
	say := func(text string) string {
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(text))
		}))
		t.Cleanup(api.Close)
		return testenv.WithOption(t, broker, "management", strings.Replace(api.URL, "://", "://ops:s3cret@", 1))
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/management",
		Setup: func(e *testscript.Env) error {
			e.Setenv("SVC", service.name)
			e.Setenv("CLOSED", testenv.WithOption(t, broker, "management", "http://ops:s3cret@127.0.0.1:1"))
			e.Setenv("LOGIN", say(`{"error":"not_authorised","reason":"Login failed"}`))
			e.Setenv("TAG", say(`{"error":"not_authorised","reason":"Not management user"}`))
			return setup(e)
		},
	})
}
