package testenv

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// A Proxy forwards TCP connections to a server and breaks them on demand. Its methods may be called concurrently.
type Proxy struct {
	target   string
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex
	links    map[*link]struct{}
	open     chan struct{} // closed while bytes may flow
	stalled  bool
	refusing bool
}

// NewProxy starts a proxy to the server at target ("host:port"). It ends with
// the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("testenv: proxy to %s: %v", target, err)
	}
	p := &Proxy{target: target, listener: listener, links: map[*link]struct{}{}, open: make(chan struct{})}
	close(p.open)
	p.running.Go(p.serve)
	t.Cleanup(p.close)
	return p
}

// Addr returns the address for clients, as "host:port".
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// CutAll resets all connections, as a crashing server does. New ones are accepted.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.cut()
	}
}

// Stall stops all traffic, also of new connections, and leaves connections open, as a network that drops packets does.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stalled {
		p.stalled, p.open = true, make(chan struct{})
	}
}

// Resume ends Stall.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled {
		p.stalled = false
		close(p.open)
	}
}

// Refuse resets new connections at once. Existing ones are not affected. The port stays in use, so that no other process takes
// it.
func (p *Proxy) Refuse() { p.setRefusing(true) }

// Accept ends Refuse.
func (p *Proxy) Accept() { p.setRefusing(false) }

func (p *Proxy) setRefusing(refusing bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = refusing
}

func (p *Proxy) close() {
	_ = p.listener.Close() // ends serve
	p.Refuse()             // also a connection that serve has just accepted
	p.CutAll()
	p.running.Wait()
}

func (p *Proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.running.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		reset(client) // so that the client notices
		return
	}
	l := &link{client: client, server: server, done: make(chan struct{})}
	if !p.add(l) {
		l.cut()
		return
	}
	var pumps sync.WaitGroup
	pumps.Go(func() { p.pump(l, server, client) })
	pumps.Go(func() { p.pump(l, client, server) })
	pumps.Wait()
	p.remove(l)
}

func (p *Proxy) add(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refusing {
		return false
	}
	p.links[l] = struct{}{}
	return true
}

func (p *Proxy) remove(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
	l.end(closePolitely)
}

// pump copies one direction until its end.
func (p *Proxy) pump(l *link, to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if !p.pass(l) {
			return
		}
		if _, failure := to.Write(buffer[:n]); failure != nil {
			l.cut()
			return
		}
		if errors.Is(err, io.EOF) {
			_ = to.(*net.TCPConn).CloseWrite() // the other direction may go on
			return
		}
		if err != nil {
			l.cut()
			return
		}
	}
}

// pass blocks while the proxy is stalled. It reports whether the link is still open.
func (p *Proxy) pass(l *link) bool {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	select {
	case <-l.done:
		return false
	case <-open:
		return true
	}
}

// link is one forwarded connection.
type link struct {
	client, server net.Conn
	done           chan struct{} // closed when it has ended
	once           sync.Once
}

func (l *link) cut() { l.end(reset) }

func (l *link) end(how func(net.Conn)) {
	l.once.Do(func() {
		close(l.done)
		how(l.client)
		how(l.server)
	})
}

func closePolitely(conn net.Conn) { _ = conn.Close() }

// reset closes a connection with a TCP reset: the other side sees an error, not the end of the stream.
func reset(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0) // fails only if the connection is closed
	_ = conn.Close()
}
