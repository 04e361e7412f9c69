package admin_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

// The timeout and the interval of waits.
const (
	patience = time.Minute
	tick     = 5 * time.Millisecond
)

func TestMain(m *testing.M) { testenv.Main(m) }

func newBus(t *testing.T) *bus.Bus {
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close(context.Background())) })
	return b
}

func TestEndpoint_rejectsInsecureConfigs(t *testing.T) {
	for _, c := range []struct{ addr, token, cert, key, want string }{
		{"/run/shop/leat.sock", "", "", "", ""},
		{"unix:/run/shop/leat.sock", "", "", "", ""},
		{"unix:///run/shop/leat.sock", token, "", "", ""},
		{"127.0.0.1:7070", token, "", "", ""},
		{"[::1]:7070", token, "", "", ""},
		{"localhost:7070", token, "", "", ""},
		{":7070", token, "cert.pem", "key.pem", ""},
		{"127.0.0.1:7070", "", "", "", "listen on a unix socket, like /run/shop/leat.sock, or set LEAT_ADMIN_TOKEN"},
		{"localhost:7070", "", "", "", "set LEAT_ADMIN_TOKEN"},
		{":7070", "", "cert.pem", "key.pem", "set LEAT_ADMIN_TOKEN"},
		{"127.0.0.1:7070", "fifteen letters", "", "", "16 or more random characters"},
		{"/run/shop/leat.sock", "t", "", "", "16 or more random characters"},
		{"0.0.0.0:7070", token, "", "", "set LEAT_ADMIN_CERT and LEAT_ADMIN_KEY"},
		{":7070", token, "", "", "set LEAT_ADMIN_CERT and LEAT_ADMIN_KEY"},
		{"10.0.0.1:7070", token, "", "", "set LEAT_ADMIN_CERT and LEAT_ADMIN_KEY"},
		{"example.com:7070", token, "", "", "set LEAT_ADMIN_CERT and LEAT_ADMIN_KEY"},
		{"localhost.:7070", token, "", "", "set LEAT_ADMIN_CERT and LEAT_ADMIN_KEY"},
		{":7070", token, "cert.pem", "", "set both"},
		{"/run/shop/leat.sock", "", "cert.pem", "key.pem", "has no TLS"},
		{"7070", "", "", "", "write the path of a unix socket, like /run/shop/leat.sock, or host:port"},
		{"unix:leat.sock", "", "", "", "absolute path"},
	} {
		err := admin.Endpoint{Addr: c.addr, Token: c.token, Cert: c.cert, Key: c.key}.Validate()
		if c.want == "" {
			require.NoError(t, err, c.addr)
		} else {
			require.ErrorContains(t, err, c.want, c.addr)
			require.NotContains(t, err.Error(), "fifteen")
		}
	}
	_, err := admin.Endpoint{Addr: ":0", Bus: newBus(t), Logger: slog.Default()}.Start(t.Context())
	require.ErrorContains(t, err, "set LEAT_ADMIN_TOKEN")
	server, err := admin.Endpoint{Addr: "localhost:0", Token: token, Bus: newBus(t), Logger: slog.New(slog.DiscardHandler)}.Start(t.Context())
	require.NoError(t, err)
	require.NoError(t, server.Stop(t.Context()))
}

func TestEndpoint_authorizesCallers(t *testing.T) {
	b := newBus(t)
	for _, c := range []struct {
		name, token                       string
		host, authorization, content, how string
		want                              int
	}{
		{"no token, loopback", "", "127.0.0.1:7070", "", "", "GET", http.StatusOK},
		{"no token, IPv6", "", "[::1]:7070", "", "", "GET", http.StatusOK},
		{"a page that was led here by a name of its own", "", "evil.example:7070", "", "", "GET", http.StatusForbidden},
		{"a form that a page posts", "", "127.0.0.1:7070", "", "text/plain", "POST", http.StatusUnsupportedMediaType},
		{"the token", "t0ken", "shop.example", "Bearer t0ken", "", "GET", http.StatusOK},
		{"no token where one is wanted", "t0ken", "127.0.0.1", "", "", "GET", http.StatusUnauthorized},
		{"a part of it", "t0ken", "127.0.0.1", "Bearer t0k", "", "GET", http.StatusUnauthorized},
		{"without the scheme", "t0ken", "127.0.0.1", "t0ken", "", "GET", http.StatusUnauthorized},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, sent := "/groups", io.Reader(nil)
			if c.how == http.MethodPost {
				path, sent = "/poison/shop.ledger/rm", strings.NewReader(`{"ids":[]}`)
			}
			r := httptest.NewRequest(c.how, path, sent)
			r.Host = c.host
			r.Header.Set("Authorization", c.authorization)
			r.Header.Set("Content-Type", c.content)
			w := httptest.NewRecorder()
			admin.Endpoint{Token: c.token, Bus: b}.Handler().ServeHTTP(w, r)
			require.Equal(t, c.want, w.Code)
			if c.want != http.StatusOK {
				body, err := io.ReadAll(w.Body)
				require.NoError(t, err)
				require.Contains(t, string(body), `{"error":"`)
				require.NotContains(t, string(body), "t0ken")
			}
		})
	}
}

// TestEndpoint_keepsMessagesUnchanged uses values that JSON can't encode unchanged.
func TestEndpoint_keepsMessagesUnchanged(t *testing.T) {
	b := newBus(t)
	feed, err := b.Transport().Subscribe(t.Context(), driver.Subscription{Group: "shop.ledger", Topics: []string{"order.>"}, Concurrency: 1})
	require.NoError(t, err)
	server, err := admin.Endpoint{Addr: "127.0.0.1:0", Token: token, Bus: b, Logger: slog.New(slog.DiscardHandler)}.Start(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Stop(context.Background())) }()
	base, err := url.Parse(server.URL())
	require.NoError(t, err)
	client, err := admin.Dial(t.Context(), base, token)
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close(t.Context())) }()

	payload := []byte{0, 0xff, 0xfe, '<', '"', '\n'}
	msg := message.NewMessage("not the event's id", payload)
	msg.Metadata = message.Metadata{driver.HeaderID: "e-1", driver.HeaderType: "order.paid.v1", "raw": "\xff\x00", "<>": "ü"}
	require.NoError(t, client.Publish(t.Context(), "order.paid.v1", msg))
	d, err := feed.Next(t.Context())
	require.NoError(t, err)
	require.Equal(t, "not the event's id", d.Message.UUID)
	require.Equal(t, payload, []byte(d.Message.Payload))
	require.Equal(t, msg.Metadata, d.Message.Metadata)
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, io.ErrUnexpectedEOF)))

	here, there := b.Transport().PoisonQueue("shop.ledger"), client.PoisonQueue("shop.ledger")
	want, err := here.List(t.Context(), "", 10)
	require.NoError(t, err)
	have, err := there.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, have, 1)
	require.Equal(t, want[0].Message.Metadata, have[0].Message.Metadata)
	require.Equal(t, want[0].Message.Payload, have[0].Message.Payload)
	require.Equal(t, want[0].Fault, have[0].Fault)

	_, err = there.Get(t.Context(), "77")
	require.ErrorIs(t, err, driver.ErrNotFound)
	_, err = client.PoisonQueue("shop.leger").List(t.Context(), "", 10)
	require.ErrorContains(t, err, "Did you mean shop.ledger?")
	require.ErrorIs(t, client.Publish(t.Context(), "nobody.wants.v1", msg), driver.ErrUnroutable)
	_, err = admin.Dial(t.Context(), &url.URL{Scheme: "http", Host: base.Host, Path: "/admin"}, "")
	require.ErrorContains(t, err, "http://host:port;")
}
