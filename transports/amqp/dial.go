package amqp

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/transports/internal/backoff"
)

const (
	defaultPort    = "5672"
	defaultPortTLS = "5671"

	// frameMax is the frame size that leat proposes: RabbitMQ's default.
	frameMax = 131072
)

// withPort adds the default port to an address without one.
func withPort(host string, useTLS bool) string {
	port := defaultPort
	if useTLS {
		port = defaultPortTLS
	}
	name, given, err := net.SplitHostPort(host)
	if err != nil {
		name, given = strings.Trim(host, "[]"), ""
	}
	return net.JoinHostPort(cmp.Or(name, "localhost"), cmp.Or(given, port))
}

// withPorts adds the default port to addresses without one.
func withPorts(hosts string, useTLS bool) string {
	all := strings.Split(hosts, ",")
	for i := range all {
		all[i] = withPort(strings.TrimSpace(all[i]), useTLS)
	}
	return strings.Join(all, ",")
}

// dial connects and logs in, to one host after the other, in random order.
func (c Config) dial(ctx context.Context, role string) (conn *amqp.Connection, wire *writeBatcher, err error) {
	hosts := strings.Split(c.Host, ",")
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	for _, host := range hosts {
		var failed error
		if conn, wire, failed = c.dialHost(ctx, host, role); failed == nil {
			return conn, wire, nil
		}
		err = errors.Join(err, failed)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, err
}

// dialHost connects and logs in. The timeout covers both, so that a server that accepts a connection and then sends nothing does
// not block it. The error names the server, and never the credentials.
func (c Config) dialHost(caller context.Context, host, role string) (*amqp.Connection, *writeBatcher, error) {
	ctx, cancel := context.WithTimeout(caller, c.DialTimeout)
	defer cancel()
	conn, wire, err := c.open(ctx, host, role)
	if err != nil {
		if err = explain(ctx, err); caller.Err() != nil && !errors.Is(caller.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("interrupted before it answered: %w", context.Cause(caller))
		}
		return nil, nil, fmt.Errorf("connect to %s, virtual host %q: %w", host, c.Vhost, err)
	}
	return conn, wire, nil
}

func (c Config) open(ctx context.Context, host, role string) (*amqp.Connection, *writeBatcher, error) {
	var dialer net.Dialer
	socket, err := dialer.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, nil, err
	}
	if c.UseTLS {
		secure, err := c.secure(ctx, socket, host)
		if err != nil {
			_ = socket.Close()
			return nil, nil, err
		}
		socket = secure
	}
	alertConn := &tlsAlertConn{Conn: socket}
	frames := newFrameReader(alertConn)
	wire := newWriteBatcher(frames)
	wire.meter = frames.meter
	giveUp := context.AfterFunc(ctx, func() { _ = socket.Close() })
	conn, err := amqp.Open(wire, amqp.Config{
		SASL:       c.sasl(),
		Vhost:      c.Vhost,
		FrameSize:  frameMax,
		Heartbeat:  c.Heartbeat,
		Locale:     "en_US",
		Properties: c.properties(role),
	})
	if !giveUp() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = wire.Close()
		return nil, nil, cmp.Or(alertConn.refusal(), err)
	}
	frames.most.Store(int64(conn.Config.FrameSize))
	return conn, wire, nil
}

// tlsAlertConn records the alert with which a TLS server refuses a client. The alert arrives after the handshake, and the AMQP
// client may report only that the connection was closed.
type tlsAlertConn struct {
	net.Conn
	alert atomic.Pointer[net.OpError]
}

func (e *tlsAlertConn) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	if err != nil {
		if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
			e.alert.Store(alert)
		}
	}
	return n, err
}

func (e *tlsAlertConn) refusal() error {
	if alert := e.alert.Load(); alert != nil {
		return fmt.Errorf("TLS: %w", alert)
	}
	return nil
}

func (c Config) sasl() []amqp.Authentication {
	if c.Auth == External {
		return []amqp.Authentication{&amqp.ExternalAuth{}}
	}
	return []amqp.Authentication{&amqp.PlainAuth{Username: c.Username, Password: c.Password}}
}

func (c Config) properties(role string) amqp.Table {
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(c.ConnectionName + " (" + role + ")")
	properties["product"] = "leat"
	return properties
}

func (c Config) secure(ctx context.Context, socket net.Conn, host string) (net.Conn, error) {
	cfg, err := c.tlsConfig(host)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(socket, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return secure, nil
}

// tlsConfig reads the certificate files each time, so that they can be renewed.
func (c Config) tlsConfig(host string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLSConfig != nil {
		cfg = c.TLSConfig.Clone()
	}
	if cfg.ServerName == "" || c.ServerName != "" {
		name, _, _ := net.SplitHostPort(host)
		cfg.ServerName = cmp.Or(c.ServerName, name)
	}
	if c.CACert != "" {
		pem, err := os.ReadFile(c.CACert)
		if err != nil {
			return nil, fmt.Errorf("cacert: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cacert: %s has no certificate in PEM format", c.CACert)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("cert and key: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// explain adds the fix to the error of a failed connection.
func explain(ctx context.Context, err error) error {
	var refused *amqp.Error
	switch {
	case ctx.Err() != nil: // first, because a connection that is closed during the handshake looks like a refused login
		return fmt.Errorf("no answer in time (dial_timeout): %w", context.Cause(ctx))
	case errors.Is(err, amqp.ErrCredentials),
		errors.As(err, &refused) && refused.Code == amqp.AccessRefused && strings.Contains(refused.Reason, "login"):
		return fmt.Errorf("the broker refused the login; correct user and password: %w", errLogin)
	case errors.Is(err, amqp.ErrSASL):
		return fmt.Errorf("the broker does not offer this way to log in; choose another auth: %w", errLogin)
	case errors.Is(err, amqp.ErrVhost),
		errors.As(err, &refused) && (refused.Code == amqp.NotAllowed || refused.Code == amqp.InvalidPath):
		return fmt.Errorf("no access to this virtual host; create it, or grant the user rights to it: %w", errLogin)
	case errors.Is(err, amqp.ErrClosed), errors.Is(err, net.ErrClosed):
		return errors.New("the server closed the connection during the handshake; is it RabbitMQ, and does it require TLS (amqps://)?")
	}
	return err
}

// errLogin marks failures that retrying can't fix.
var errLogin = errors.New("not admitted")

// newBackoff returns the pauses between tries to connect.
func newBackoff() backoff.Backoff {
	return backoff.Backoff{First: 50 * time.Millisecond, Longest: 5 * time.Second}
}
