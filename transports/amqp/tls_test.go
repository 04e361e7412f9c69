package amqp_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

func TestTLS(t *testing.T) {
	broker := sharedBroker(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	dir := t.TempDir()
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	ours.write(t, filepath.Join(dir, "ca.pem"))
	theirs.write(t, filepath.Join(dir, "other.pem"))
	ours.issue(t, "client", dir)
	theirs.issue(t, "stranger", dir)
	server := ours.issue(t, "localhost", dir)
	pool := x509.NewCertPool()
	pool.AddCert(ours.cert)
	front := terminate(t, u.Host+":"+itoa(u.Port), &tls.Config{
		Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	address := "amqps://" + u.Username + ":" + u.Password + "@" + front + "/"
	with := func(pairs ...string) string {
		values := url.Values{"connect_timeout": {"10s"}} // enough for one try on a busy machine
		for i := 0; i < len(pairs); i += 2 {
			values.Set(pairs[i], pairs[i+1])
		}
		return address + "?" + values.Encode()
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	client := []string{"cert", file("client.pem"), "key", file("client.key"), "server_name", "localhost"}

	for name, c := range map[string]struct{ raw, want string }{
		"an authority that nobody knows": {with(client...), "certificate"},
		"another authority":              {with(append(client, "cacert", file("other.pem"))...), "certificate"},
		"another name":                   {with(append(client, "cacert", file("ca.pem"), "server_name", "elsewhere")...), "elsewhere"},
		"no client certificate":          {with("cacert", file("ca.pem"), "server_name", "localhost"), "certificate"},
		"a stranger's certificate": {with("cacert", file("ca.pem"), "server_name", "localhost",
			"cert", file("stranger.pem"), "key", file("stranger.key")), "certificate"},
		"a file that is not there": {with("cacert", file("none.pem")), "none.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := openURL(t.Context(), c.raw)
			require.ErrorContains(t, err, c.want)
		})
	}

	transport := open(t, with(append(client, "cacert", file("ca.pem"), "connect_timeout", patience.String())...))
	require.True(t, transport.Health().Connected)
	closeAll(t, transport)
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	der  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key, der: der}
}

func (a *authority) write(t *testing.T, path string) { writePEM(t, path, "CERTIFICATE", a.der) }

func writePEM(t *testing.T, path, kind string, der []byte) {
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// issue writes <name>.pem and <name>.key.
func (a *authority) issue(t *testing.T, name, dir string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	writePEM(t, filepath.Join(dir, name+".key"), "EC PRIVATE KEY", keyDER)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// terminate returns a TLS front of a plain server.
func terminate(t *testing.T, target string, cfg *tls.Config) string {
	listener, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { join(client, target) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		all.Wait()
	})
	return listener.Addr().String()
}

func join(client net.Conn, target string) {
	defer func() { _ = client.Close() }()
	if secure := client.(*tls.Conn); secure.Handshake() != nil {
		_, _ = io.Copy(io.Discard, secure.NetConn()) // till it has read why; a reset could be faster
		return
	}
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
	_ = client.Close()
	<-done
}
