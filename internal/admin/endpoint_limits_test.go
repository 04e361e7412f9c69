package admin_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/transports/memory"
)

const token = "0123456789abcdef"

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func dial(t *testing.T, address, token string) (*admin.Client, error) {
	base, err := url.Parse(address)
	require.NoError(t, err)
	return admin.Dial(t.Context(), base, token)
}

// clientOf starts an endpoint that logs nothing, until the test ends, and returns a client of it.
func clientOf(t *testing.T, e admin.Endpoint) *admin.Client {
	e.Logger = quiet()
	server, err := e.Start(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.Background())) })
	client, err := dial(t, server.URL(), e.Token)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close(context.Background())) })
	return client
}

func TestAdminSocket_isForItsUserAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("files have no mode")
	}
	path := filepath.Join(t.TempDir(), "leat.sock")
	endpoint := admin.Endpoint{Addr: path, Bus: newBus(t), Logger: quiet()}
	server, err := endpoint.Start(t.Context())
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing is left of how it was made")
	require.Equal(t, "unix://"+path, server.URL())
	client, err := dial(t, server.URL(), "")
	require.NoError(t, err)
	_, err = client.Groups(t.Context())
	require.NoError(t, err)
	require.NoError(t, client.Close(t.Context()))

	_, err = endpoint.Start(t.Context())
	require.ErrorContains(t, err, "another process listens on "+path)
	require.NoError(t, server.Stop(t.Context()))
	require.NoFileExists(t, path)

	// A process that was killed leaves its socket.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	endpoint.Addr = "unix://" + path
	server, err = endpoint.Start(t.Context())
	require.NoError(t, err)
	require.NoError(t, server.Stop(t.Context()))

	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	_, err = endpoint.Start(t.Context())
	require.ErrorContains(t, err, "is not a socket")
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "mine", string(content))

	endpoint.Addr = filepath.Join(t.TempDir(), "not-there", "leat.sock")
	_, err = endpoint.Start(t.Context())
	require.ErrorContains(t, err, "must exist")
}

func TestAdminSocket_ofAnotherProcessStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leat.sock")
	server, err := admin.Endpoint{Addr: path, Bus: newBus(t), Logger: quiet()}.Start(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	other, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Close()) }()
	require.NoError(t, server.Stop(t.Context()))
	require.FileExists(t, path)
}

func TestAdminTLS(t *testing.T) {
	cert, key, roots := certificate(t)
	endpoint := admin.Endpoint{Addr: "127.0.0.1:0", Token: token, Cert: cert, Key: key, Bus: newBus(t), Logger: quiet()}
	server, err := endpoint.Start(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Stop(context.Background())) }()
	require.Contains(t, server.URL(), "https://")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL()+"/health", nil)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)
	_, err = dial(t, server.URL(), token)
	require.ErrorContains(t, err, "certificate", "nobody has signed it")

	endpoint.Key = cert
	_, err = endpoint.Start(t.Context())
	require.ErrorContains(t, err, "LEAT_ADMIN_KEY")
}

func certificate(t *testing.T) (cert, key string, roots *x509.CertPool) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	require.NoError(t, err)
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert, key = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return cert, key, roots
}

func TestDial_sendsNoTokenInClearText(t *testing.T) {
	_, err := dial(t, "http://shop.example:7070", token)
	require.ErrorContains(t, err, "write https://")
	_, err = dial(t, "unix://run/shop/leat.sock", token)
	require.ErrorContains(t, err, "unix:///run/shop/leat.sock")
}

func TestAdmin_refusesWebPagesOfOtherSites(t *testing.T) {
	handler := admin.Endpoint{Bus: newBus(t)}.Handler()
	for _, c := range []struct {
		method, header, value string
		want                  int
	}{
		{"GET", "Sec-Fetch-Site", "cross-site", http.StatusForbidden},
		{"GET", "Sec-Fetch-Site", "same-site", http.StatusForbidden},
		{"HEAD", "Sec-Fetch-Site", "cross-site", http.StatusForbidden},
		{"GET", "Sec-Fetch-Site", "same-origin", http.StatusOK},
		{"GET", "Sec-Fetch-Site", "none", http.StatusOK},
		{"POST", "Origin", "https://evil.example", http.StatusForbidden},
		{"GET", "X-Nothing", "", http.StatusOK},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, "http://127.0.0.1/groups", nil)
		r.Header.Set(c.header, c.value)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Equal(t, c.want, w.Code, "%+v", c)
	}
}

func TestAdmin_limitsWrongTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := bus.New(memory.New(memory.Config{}), bus.Config{Logger: quiet()})
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close(context.Background())) }()
		handler := admin.Endpoint{Token: token, Bus: b}.Handler()
		try := func(from, with string) int {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/health", nil)
			r.RemoteAddr = from
			r.Header.Set("Authorization", "Bearer "+with)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != http.StatusOK {
				require.Equal(t, "close", w.Header().Get("Connection"))
			}
			return w.Code
		}
		const attacker, neighbour = "[2001:db8::1]:1", "[2001:db8::2]:1" // in one /64
		for range 10 {
			require.Equal(t, http.StatusUnauthorized, try(attacker, "wrong"))
		}
		require.Equal(t, http.StatusTooManyRequests, try(attacker, "wrong"))
		require.Equal(t, http.StatusTooManyRequests, try(neighbour, token), "a right guess must not be confirmed")
		served := 0
		for i := range 64 { // some share the attacker's slot
			if try(fmt.Sprintf("192.0.2.%d:1", i), token) == http.StatusOK {
				served++
			}
		}
		require.Greater(t, served, 32, "other addresses are served")
		time.Sleep(7 * time.Second)
		require.Equal(t, http.StatusOK, try(attacker, token))
		require.Equal(t, http.StatusUnauthorized, try(attacker, "wrong"))
		require.Equal(t, http.StatusTooManyRequests, try(attacker, "wrong"))
	})
}

// unread is a body that nobody may read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

// endless is a body of spaces that counts what was read of it.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read.Add(int64(len(p)))
	return len(p), nil
}

func TestAdmin_boundsBodies(t *testing.T) {
	handler := admin.Endpoint{Bus: newBus(t)}.Handler()
	post := func(path string, body io.Reader, length int64) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1"+path, body)
		r.ContentLength = length
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	for _, verb := range []string{"put", "rm", "replay"} {
		w := post("/poison/nobody/"+verb, unread{t}, 20<<20)
		require.Equal(t, http.StatusNotFound, w.Code, "the group is looked for first")
	}
	require.Equal(t, http.StatusRequestEntityTooLarge, post("/publish", unread{t}, 33<<20).Code)
	body := new(endless)
	require.Equal(t, http.StatusRequestEntityTooLarge, post("/publish", body, -1).Code)
	require.Less(t, body.read.Load(), int64(34<<20))
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/groups", unread{t})
	r.ContentLength = 1
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	require.Equal(t, http.StatusBadRequest, w.Code)
}

func TestAdmin_boundsIDs(t *testing.T) {
	b := newBus(t)
	feed, err := b.Transport().Subscribe(t.Context(), driver.Subscription{Group: "shop.ledger", Topics: []string{"order.>"}, Concurrency: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, feed.Close(context.Background())) }()
	handler := admin.Endpoint{Bus: b}.Handler()
	for body, want := range map[string]string{
		`{"ids":[]}`:     `{"done":0}`,
		`{"ids":["1"]}`:  `{"done":0,"missing"`,
		`{"ids":[1]}`:    "body: json",
		`{"id":["1"]}`:   `write {\"ids\":[…]}`,
		`{"ids":["1"],1`: "body: ",
		`{"ids":["1"` + strings.Repeat(`,"1"`, 99_999) + "]}":  `{"done":0,"missing"`,
		`{"ids":["1"` + strings.Repeat(`,"1"`, 100_000) + "]}": "over 100000 ids",
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/poison/shop.ledger/rm", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Contains(t, w.Body.String(), want, body[:min(len(body), 100)])
	}
}

func TestAdmin_putsRecords(t *testing.T) {
	b := newBus(t)
	feed, err := b.Transport().Subscribe(t.Context(), driver.Subscription{Group: "shop.ledger", Topics: []string{"order.>"}, Concurrency: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, feed.Close(context.Background())) }()
	server, err := admin.Endpoint{Addr: filepath.Join(t.TempDir(), "s"), Bus: b, Logger: quiet()}.Start(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Stop(context.Background())) }()
	client, err := dial(t, server.URL(), "")
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close(t.Context())) }()

	msgs := make([]driver.PoisonedMessage, 3)
	for i := range msgs { // together they are larger than a body may be
		msg := message.NewMessage(fmt.Sprint(i), bytes.Repeat([]byte{0xff}, 9<<20))
		msg.Metadata = message.Metadata{driver.HeaderID: fmt.Sprint(i), driver.HeaderType: "order.paid.v1", driver.HeaderFaultTopic: "order.paid.v1"}
		msgs[i] = driver.PoisonedMessage{Message: msg, Fault: driver.FaultOf(msg.Metadata)}
	}
	require.NoError(t, client.PoisonQueue("shop.ledger").Put(t.Context(), msgs...))
	n, err := b.Transport().PoisonQueue("shop.ledger").Len(t.Context())
	require.NoError(t, err)
	require.Equal(t, len(msgs), n)
	missing := msgs[0]
	missing.ID = "77"
	require.ErrorIs(t, client.PoisonQueue("shop.ledger").Put(t.Context(), missing), driver.ErrNotFound)

	handler := admin.Endpoint{Bus: b}.Handler()
	for body, want := range map[string]string{
		`{"records":[]}`:             `{"done":0}`,
		`{"records":[]} {}`:          "more than one JSON value",
		`{"records":[],"x":1}`:       "nothing beside the records",
		`{"record":[]}`:              `write {\"records\":[…]}`,
		`[]`:                         `write {\"records\":[…]}`,
		`{"records":[{}]}`:           "has no headers",
		`{"records":[{"id":1}]}`:     "body: json",
		`{"records":[`:               "EOF",
		`{"records":[{"headers":{"`:  "unexpected EOF",
		`{"records":[]`:              "EOF",
		``:                           "EOF",
		strings.Repeat("[", 100_000): "write",
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/poison/shop.ledger/put", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		require.Contains(t, w.Body.String(), want, body)
	}
}

// slowBody blocks until it is released, and counts the bodies that are read at once.
type slowBody struct {
	reading, most *atomic.Int64
	release       chan struct{}
}

func (s *slowBody) Read([]byte) (int, error) {
	s.most.Store(max(s.most.Load(), s.reading.Add(1)))
	<-s.release
	s.reading.Add(-1)
	return 0, io.EOF
}

func TestAdmin_readsFewLargeBodiesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := bus.New(memory.New(memory.Config{}), bus.Config{Logger: quiet()})
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close(context.Background())) }()
		handler := admin.Endpoint{Bus: b}.Handler()
		var reading, most atomic.Int64
		release, done := make(chan struct{}), make(chan int)
		for range 5 {
			go func() {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1/publish", &slowBody{&reading, &most, release})
				r.ContentLength = 20 << 20
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r)
				done <- w.Code
			}()
		}
		synctest.Wait()
		require.Equal(t, int64(2), most.Load())
		close(release)
		for range 5 {
			require.Equal(t, http.StatusBadRequest, <-done)
		}
		require.Equal(t, int64(2), most.Load())
	})
}

// pipes is a listener whose connections are pipes, for virtual time.
type pipes struct {
	connections chan net.Conn
	closed      chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.connections:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.closed)
	return nil
}

func (*pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// connect writes a request on a new connection and returns what the server writes.
func (p *pipes) connect(t *testing.T, request string) (net.Conn, *bufio.Reader) {
	here, there := net.Pipe()
	p.connections <- there
	_, err := io.WriteString(here, request)
	require.NoError(t, err)
	return here, bufio.NewReader(here)
}

// slowQueue takes long to replay.
type slowTransport struct{ *memory.Transport }

type slowQueue struct{ driver.PoisonQueue }

func (s slowTransport) PoisonQueue(group string) driver.PoisonQueue {
	return slowQueue{s.Transport.PoisonQueue(group)}
}

func (slowQueue) Replay(ctx context.Context, ids ...string) (int, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(10 * time.Minute):
		return len(ids), nil
	}
}

func onPipes(t *testing.T, token string, test func(t *testing.T, p *pipes, b *bus.Bus)) {
	synctest.Test(t, func(t *testing.T) {
		b, err := bus.New(slowTransport{memory.New(memory.Config{})}, bus.Config{Logger: quiet()})
		require.NoError(t, err)
		feed, err := b.Transport().Subscribe(t.Context(), driver.Subscription{Group: "shop.ledger", Topics: []string{"order.>"}, Concurrency: 1})
		require.NoError(t, err)
		p := &pipes{make(chan net.Conn), make(chan struct{})}
		server := admin.Endpoint{Token: token, Bus: b, Logger: quiet()}.Serve(t.Context(), p)
		test(t, p, b)
		require.NoError(t, server.Stop(context.Background()))
		require.NoError(t, feed.Close(context.Background()))
		require.NoError(t, b.Close(context.Background()))
	})
}

func TestAdmin_closesConnectionsThatDoNothing(t *testing.T) {
	onPipes(t, token, func(t *testing.T, p *pipes, _ *bus.Bus) {
		for _, c := range []struct {
			name, request, want string
			within              time.Duration
		}{
			{"nothing", "", "", 11 * time.Second},
			{"half a header", "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", "", 11 * time.Second},
			{"no token", "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "401", 2 * time.Second},
			{"no token, and a body that never comes", "POST /publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\nContent-Type: application/json\r\n\r\n", "401", 2 * time.Second},
			{"idle", "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + token + "\r\n\r\n", "200", 61 * time.Second},
			{
				"a body that never comes", "POST /publish HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\nContent-Type: application/json\r\nAuthorization: Bearer " + token + "\r\n\r\n",
				"408", 63 * time.Second,
			},
		} {
			began := time.Now()
			connection, in := p.connect(t, c.request)
			require.NoError(t, connection.SetReadDeadline(began.Add(c.within)))
			answered, err := io.ReadAll(in)
			require.NoError(t, err, "%s: still open after %s", c.name, time.Since(began))
			require.Contains(t, string(answered), c.want, c.name)
			require.NoError(t, connection.Close())
		}
	})
}

func TestAdmin_letsSlowAnswersTakeTheirTime(t *testing.T) {
	onPipes(t, "", func(t *testing.T, p *pipes, b *bus.Bus) {
		connection, in := p.connect(t, "POST /poison/shop.ledger/replay HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\nContent-Type: application/json\r\n\r\n{\"ids\":[\"1\"]}")
		response, err := http.ReadResponse(in, nil)
		require.NoError(t, err)
		var done struct{ Done int }
		require.NoError(t, json.NewDecoder(response.Body).Decode(&done))
		require.Equal(t, 1, done.Done, "the deadline of the body must not cancel what follows")
		require.NoError(t, response.Body.Close())
		require.NoError(t, connection.Close())

		connection, in = p.connect(t, "GET /tail?pattern=order.> HTTP/1.1\r\nHost: localhost\r\n\r\n")
		response, err = http.ReadResponse(in, nil)
		require.NoError(t, err)
		time.Sleep(time.Hour)
		msg := message.NewMessage("1", nil)
		msg.Metadata = message.Metadata{driver.HeaderID: "1", driver.HeaderType: "order.paid.v1"}
		require.NoError(t, b.Transport().Publish(t.Context(), "order.paid.v1", msg))
		var record admin.Record
		require.NoError(t, json.NewDecoder(response.Body).Decode(&record))
		require.Equal(t, "order.paid.v1", record.Topic)
		require.NoError(t, connection.Close())
		_ = response.Body.Close() // it has no end
	})
}

func TestAdmin_endsHEAD(t *testing.T) {
	onPipes(t, "", func(t *testing.T, p *pipes, _ *bus.Bus) {
		connection, in := p.connect(t, "HEAD /tail?pattern=order.> HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
		require.NoError(t, connection.SetReadDeadline(time.Now().Add(time.Minute)))
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			response, err := http.ReadResponse(in, &http.Request{Method: method})
			require.NoError(t, err, method)
			require.Equal(t, http.StatusOK, response.StatusCode)
			_, err = io.Copy(io.Discard, response.Body)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
		}
		require.NoError(t, connection.Close())
	})
}
