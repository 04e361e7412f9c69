package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// minToken is the least length of a token. 16 characters of hexadecimal digits are 64 bits.
const minToken = 16

// Limits of connections.
const (
	headerTimeout  = 10 * time.Second // also of a TLS handshake
	idleTimeout    = time.Minute
	maxHeaderBytes = 64 << 10
	maxConnections = 256 // at once; others wait until the system refuses them
)

const (
	exampleSocket = "/run/shop/leat.sock"
	longEnough    = "16 or more random characters, as from openssl rand -hex 16"
)

// Validate returns an error if the endpoint may not be opened with this configuration.
func (a Endpoint) Validate() error {
	if a.Token != "" && len(a.Token) < minToken {
		return fmt.Errorf("the admin token is too short; set LEAT_ADMIN_TOKEN to %s", longEnough)
	}
	if (a.Cert == "") != (a.Key == "") {
		return errors.New("LEAT_ADMIN_CERT and LEAT_ADMIN_KEY go together; set both, or none")
	}
	path, isSocket, err := socketPath(a.Addr)
	if err != nil {
		return err
	}
	if isSocket {
		if a.Cert != "" {
			return fmt.Errorf("admin address %q is a unix socket, which has no TLS; unset LEAT_ADMIN_CERT and LEAT_ADMIN_KEY", path)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(a.Addr)
	if err != nil || port == "" {
		return fmt.Errorf("admin address %q: write the path of a unix socket, like %s, or host:port, like 127.0.0.1:7070", a.Addr, exampleSocket)
	}
	if a.Token == "" {
		return fmt.Errorf("admin address %q is open to every user of this machine; listen on a unix socket, like %s, or set LEAT_ADMIN_TOKEN to %s",
			a.Addr, exampleSocket, longEnough)
	}
	if a.Cert == "" && host != "localhost" && !isLoopback(host) { // listen checks the address of localhost
		return a.needsTLS()
	}
	return nil
}

func (a Endpoint) needsTLS() error {
	return fmt.Errorf("admin address %q can be reached from other machines; set LEAT_ADMIN_CERT and LEAT_ADMIN_KEY to the PEM files of a certificate and its key, "+
		"or listen on 127.0.0.1 or on a unix socket, like %s", a.Addr, exampleSocket)
}

// socketPath returns the path of an address that is a unix socket.
func socketPath(addr string) (path string, isSocket bool, _ error) {
	path, isSocket = strings.CutPrefix(addr, "unix:")
	if isSocket {
		path = strings.TrimPrefix(path, "//")
	}
	switch {
	case filepath.IsAbs(path):
		return filepath.Clean(path), true, nil
	case isSocket:
		return "", true, fmt.Errorf("admin address %q: write the socket's absolute path, like unix:%s", addr, exampleSocket)
	}
	return "", false, nil
}

// isLoopback reports whether a host is a loopback address. A name never is, because it may resolve to any address.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// IsLocal reports whether a Host header, with or without a port, is localhost or a loopback address.
func IsLocal(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return host == "localhost" || isLoopback(host)
}

// urlOf returns the URL by which the client of a request reaches the endpoint, for [Dial].
func (a Endpoint) urlOf(r *http.Request) string {
	path, isSocket, err := socketPath(a.Addr)
	switch {
	case isSocket && err == nil:
		return socketURL(path)
	case r.TLS == nil && IsLocal(r.Host):
		return "http://" + r.Host
	}
	return "https://" + r.Host // of a proxy if the request has no TLS: Dial takes no other URL of another machine
}

func socketURL(path string) string {
	return (&url.URL{Scheme: "unix", Path: filepath.ToSlash(path)}).String()
}

// A Server serves an [Endpoint] until Stop.
type Server struct {
	server  *http.Server
	url     string
	release func() // removes the socket
	cancel  context.CancelFunc
	ended   chan error
}

// Start listens and serves until Stop.
func (a Endpoint) Start(ctx context.Context) (*Server, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	listener, url, release, err := a.listen(ctx)
	if err != nil {
		return nil, fmt.Errorf("admin endpoint: %w", err)
	}
	s := a.serve(ctx, listener, url, release)
	if a.Console != nil && !strings.HasPrefix(url, "unix:") { // browsers don't open sockets
		a.Logger.Info("leat: console", "url", url+consolePath)
	}
	a.Logger.Info("leat: admin endpoint", "url", url)
	return s, nil
}

// listen opens the address. Its last result is called when the endpoint closes.
func (a Endpoint) listen(ctx context.Context) (_ net.Listener, url string, release func(), _ error) {
	if path, isSocket, _ := socketPath(a.Addr); isSocket {
		listener, release, err := listenSocket(ctx, path)
		if err != nil {
			return nil, "", nil, err
		}
		return newBoundedListener(listener), socketURL(path), release, nil
	}
	release = func() {}
	var certificate tls.Certificate
	if a.Cert != "" {
		var err error
		if certificate, err = tls.LoadX509KeyPair(a.Cert, a.Key); err != nil {
			return nil, "", nil, fmt.Errorf("the certificate of LEAT_ADMIN_CERT and the key of LEAT_ADMIN_KEY: %w", err)
		}
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", a.Addr)
	if err != nil {
		return nil, "", nil, err
	}
	listener = newBoundedListener(listener)
	if a.Cert != "" {
		config := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
		return tls.NewListener(listener, config), "https://" + listener.Addr().String(), release, nil
	}
	if address, ok := listener.Addr().(*net.TCPAddr); !ok || !address.IP.IsLoopback() { // a name may resolve to any address
		return nil, "", nil, errors.Join(a.needsTLS(), listener.Close())
	}
	return listener, "http://" + listener.Addr().String(), release, nil
}

// listenSocket opens a unix socket that only the user of this process may connect to. The socket is created in a directory
// that only this user can access, and moved to its path after its mode is set, so others can't connect at any time.
func listenSocket(ctx context.Context, path string) (_ net.Listener, release func(), err error) {
	if err := checkStale(ctx, path); err != nil {
		return nil, nil, err
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return nil, nil, fmt.Errorf("the directory of the socket %s must exist and be writable: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	at := filepath.Join(private, "s")
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", at)
	if err != nil {
		return nil, nil, fmt.Errorf("%w (a path of a unix socket has about 100 bytes at most)", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	var made os.FileInfo
	if err = os.Chmod(at, 0o600); err == nil {
		if made, err = os.Stat(at); err == nil {
			err = os.Rename(at, path)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	return listener, func() {
		if there, err := os.Lstat(path); err == nil && os.SameFile(made, there) {
			_ = os.Remove(path)
		}
	}, nil
}

// checkStale returns nil if the path does not exist, or is a socket of a process that has ended.
func checkStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket; choose another path", path)
	}
	connection, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = connection.Close()
		return fmt.Errorf("another process listens on %s; stop it, or choose another path", path)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// boundedListener has at most maxConnections connections at a time. Without it, clients that need no token for that could
// take the process's file descriptors, which it needs for its message system.
type boundedListener struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	close  func() error
}

func newBoundedListener(l net.Listener) *boundedListener {
	b := &boundedListener{Listener: l, slots: make(chan struct{}, maxConnections), closed: make(chan struct{})}
	b.close = sync.OnceValue(func() error {
		close(b.closed)
		return l.Close()
	})
	return b
}

func (b *boundedListener) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	conn, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &boundedConn{conn, sync.OnceFunc(func() { <-b.slots })}, nil
}

func (b *boundedListener) Close() error { return b.close() }

// boundedConn frees its slot when it is closed.
type boundedConn struct {
	net.Conn
	release func()
}

func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// serve serves on the listener until Stop.
func (a Endpoint) serve(ctx context.Context, listener net.Listener, url string, release func()) *Server {
	serving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &Server{
		server: &http.Server{
			Handler:           a.Handler(),
			ReadHeaderTimeout: headerTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeaderBytes,
			BaseContext:       func(net.Listener) context.Context { return serving },
			ErrorLog:          slog.NewLogLogger(a.Logger.Handler(), slog.LevelWarn),
		},
		url:     url,
		release: release,
		cancel:  cancel,
		ended:   make(chan error, 1),
	}
	go func() { s.ended <- s.server.Serve(listener) }()
	return s
}

// URL returns the URL of the endpoint for [Dial].
func (s *Server) URL() string { return s.url }

// Stop ends requests and closes the endpoint.
func (s *Server) Stop(ctx context.Context) error {
	s.cancel()
	s.release()
	err := s.server.Shutdown(ctx)
	if served := <-s.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}
