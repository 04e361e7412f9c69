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

	// frameMax is the frame size that leat asks for: RabbitMQ's own default.
	frameMax = 131072
)

// withPort completes an address.
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

// withPorts completes a list of addresses.
func withPorts(hosts string, useTLS bool) string {
	all := strings.Split(hosts, ",")
	for i := range all {
		all[i] = withPort(strings.TrimSpace(all[i]), useTLS)
	}
	return strings.Join(all, ",")
}

// dial connects and logs in, to one host after the other, in random order.
func (c Config) dial(ctx context.Context, role string) (conn *amqp.Connection, wire *coalescer, err error) {
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

// dialHost connects and logs in. The time-out covers all of it: a server that accepts and then says
// nothing is given up in time. The error names the server and never the credentials.
func (c Config) dialHost(ctx context.Context, host, role string) (*amqp.Connection, *coalescer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.DialTimeout)
	defer cancel()
	conn, wire, err := c.open(ctx, host, role)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to %s, virtual host %q: %w", host, c.Vhost, explain(ctx, err))
	}
	return conn, wire, nil
}

func (c Config) open(ctx context.Context, host, role string) (*amqp.Connection, *coalescer, error) {
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
	ear := &ear{Conn: socket}
	frames := newFrameReader(ear)
	wire := newCoalescer(frames)
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
		return nil, nil, cmp.Or(ear.refusal(), err)
	}
	frames.negotiated(conn.Config.FrameSize)
	return conn, wire, nil
}

// ear hears why a TLS server refuses a client, which is only told after the handshake: to the AMQP client it may
// look as if the server just hung up.
type ear struct {
	net.Conn
	heard atomic.Pointer[net.OpError]
}

func (e *ear) Read(p []byte) (int, error) {
	n, err := e.Conn.Read(p)
	if err != nil {
		if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
			e.heard.Store(alert)
		}
	}
	return n, err
}

func (e *ear) refusal() error {
	if alert := e.heard.Load(); alert != nil {
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

// tlsConfig reads the certificate files anew.
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

// explain puts the cure beside a failure to connect.
func explain(ctx context.Context, err error) error {
	var refused *amqp.Error
	switch {
	case ctx.Err() != nil: // first: a connection that is given up half-way looks like a refused login
		return fmt.Errorf("no answer in time (dial_timeout): %w", context.Cause(ctx))
	case errors.Is(err, amqp.ErrCredentials),
		errors.As(err, &refused) && refused.Code == amqp.AccessRefused && strings.Contains(refused.Reason, "login"):
		return fmt.Errorf("the broker refused the login; correct user and password: %w", errLogin)
	case errors.Is(err, amqp.ErrSASL):
		return fmt.Errorf("the broker does not offer this way to log in; choose another auth: %w", errLogin)
	case errors.Is(err, amqp.ErrVhost),
		errors.As(err, &refused) && (refused.Code == amqp.NotAllowed || refused.Code == amqp.InvalidPath):
		return fmt.Errorf("no access to this virtual host; make it, or give the user rights to it: %w", errLogin)
	case errors.Is(err, amqp.ErrClosed), errors.Is(err, net.ErrClosed):
		return errors.New("the server hung up during the handshake; is it RabbitMQ, and amqps:// if it wants TLS?")
	}
	return err
}

// errLogin marks failures that waiting does not mend.
var errLogin = errors.New("not admitted")

// newBackoff returns the pause between tries to connect.
func newBackoff() backoff.Backoff {
	return backoff.Backoff{First: 50 * time.Millisecond, Longest: 5 * time.Second}
}
