package admin_test

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/admin"
)

func TestDial_saysHowToTrustACertificate(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	_, err = admin.Dial(t.Context(), u, "0123456789abcdef")
	require.ErrorContains(t, err, "set the variable SSL_CERT_FILE to a PEM file")
}
