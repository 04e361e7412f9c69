package amqp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
)

// link is one connection to the broker for the life of a transport: made anew whenever it is lost.
// There are two, because the broker stops reading from connections that publish when it runs out of
// memory, and acks must pass meanwhile.
type link struct {
	cfg    Config
	role   string
	ctx    context.Context // ends when the link is to be closed; its cause is the context to do it in
	cancel context.CancelCauseFunc
	done   chan struct{}

	mu         sync.Mutex
	conn       *amqp.Connection
	wire       *coalescer
	changed    chan struct{} // closed at the next change of the state
	blocked    string        // why the broker has stopped reading
	lastErr    error
	reconnects int
	frameSize  int // what the broker takes at once
	sickUntil  time.Time
	turn       chan struct{} // holds one while a group connects, after the broker has ended the connection over one
}

// sickFor is how long groups connect one after the other.
const sickFor = time.Minute

func (l *link) isSick() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(l.sickUntil)
}

// openLink makes the first connection, trying for as long as ctx and the configuration allow.
func openLink(ctx context.Context, cfg Config, role string) (*link, error) {
	l := &link{cfg: cfg, role: role, changed: make(chan struct{}), done: make(chan struct{}), turn: make(chan struct{}, 1)}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	ctx, cancel := backoff.Bound(ctx, cfg.ConnectTimeout, defaultConnectTimeout)
	defer cancel()

	pause := newBackoff()
	var why error // of the last try that was not cut short
	for {
		conn, wire, err := cfg.dial(ctx, role)
		if err == nil {
			l.conn, l.wire, l.frameSize = conn, wire, conn.Config.FrameSize
			go l.run(conn, wire)
			return l, nil
		}
		if late, ok := errors.AsType[net.Error](err); why == nil || !ok || !late.Timeout() {
			why = err
		}
		if errors.Is(err, errLogin) || !pause.Wait(ctx) {
			l.cancel(nil)
			return nil, why
		}
	}
}

// run watches the connection and replaces it.
func (l *link) run(conn *amqp.Connection, wire *coalescer) {
	defer close(l.done)
	for conn != nil {
		l.watch(conn, wire)
		if l.ctx.Err() != nil {
			return
		}
		conn, wire = l.redial()
	}
}

// watch returns when the connection has ended.
func (l *link) watch(conn *amqp.Connection, wire *coalescer) {
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	l.set(func() { l.conn, l.wire, l.lastErr, l.frameSize = conn, wire, nil, conn.Config.FrameSize })
	for {
		select {
		case b, ok := <-blocked:
			if !ok {
				blocked = nil
				continue
			}
			l.set(func() { l.blocked = blockedReason(b) })
			if b.Active {
				l.cfg.Logger.Warn("leat: amqp: the broker accepts no messages for now", "reason", b.Reason)
			}
		case reason := <-closed:
			l.set(func() {
				l.conn, l.wire, l.blocked, l.lastErr = nil, nil, "", lost(reason)
				if reason != nil && reason.Code == amqp.InternalError {
					l.sickUntil = time.Now().Add(sickFor)
				}
			})
			l.cfg.Logger.Warn("leat: amqp: connection lost", "role", l.role, "error", lost(reason))
			return
		case <-l.ctx.Done():
			_ = conn.CloseDeadline(l.deadline()) // lost already, or lost now
			return
		}
	}
}

func blockedReason(b amqp.Blocking) string {
	if !b.Active {
		return ""
	}
	return driver.OneLine("blocked by the broker: "+b.Reason, 256)
}

func lost(reason *amqp.Error) error {
	if reason == nil {
		return errors.New("connection lost")
	}
	return fmt.Errorf("connection lost: %w", reason)
}

// tellEvery is how often a connection that can't be made is logged.
const tellEvery = 30 * time.Second

// redial tries for ever. It returns nil when the link is closed.
func (l *link) redial() (*amqp.Connection, *coalescer) {
	pause := newBackoff()
	var told time.Time
	for pause.Wait(l.ctx) {
		conn, wire, err := l.cfg.dial(l.ctx, l.role)
		if err == nil {
			l.set(func() { l.reconnects++ })
			l.cfg.Logger.Info("leat: amqp: connected again", "role", l.role, "host", conn.RemoteAddr().String())
			return conn, wire
		}
		l.set(func() { l.lastErr = err })
		if l.ctx.Err() == nil && time.Since(told) > tellEvery {
			told = time.Now()
			l.cfg.Logger.Warn("leat: amqp: not connected", "role", l.role, "error", err)
		}
	}
	return nil, nil
}

// set changes the state and wakes who waits for a change.
func (l *link) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.changed)
	l.changed = make(chan struct{})
}

// connection waits for a connection as long as ctx allows. The error says why there is none.
func (l *link) connection(ctx context.Context) (*amqp.Connection, *coalescer, error) {
	for {
		l.mu.Lock()
		conn, wire, changed, lastErr := l.conn, l.wire, l.changed, l.lastErr
		l.mu.Unlock()
		if conn != nil && !conn.IsClosed() {
			return conn, wire, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, notConnected(ctx, lastErr)
		case <-l.ctx.Done():
			return nil, nil, driver.ErrClosed
		}
	}
}

// notConnected joins the caller's reason to stop waiting with the reason for the wait.
func notConnected(ctx context.Context, lastErr error) error {
	if lastErr == nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w (%w)", context.Cause(ctx), lastErr)
}

// frame is how many bytes a frame may have, as the broker has agreed to for the last connection.
func (l *link) frame() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frameSize <= 0 {
		return frameMax
	}
	return l.frameSize
}

// state is why nothing can be sent now; nil when it can.
func (l *link) state() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.blocked != "":
		return errors.New(l.blocked)
	case l.conn == nil:
		return l.lastErr
	}
	return nil
}

// close ends the connection politely, as long as ctx allows, and waits for the goroutine.
func (l *link) close(ctx context.Context) {
	l.cancel(&closing{ctx})
	<-l.done
}

// closing is the cause by which a link ends.
type closing struct{ ctx context.Context }

func (*closing) Error() string { return "closing" }

// deadline leaves the broker some time to answer, even when whoever closes has none left.
func (l *link) deadline() time.Time {
	const least, most = 200 * time.Millisecond, 5 * time.Second
	left := most
	if c, ok := errors.AsType[*closing](context.Cause(l.ctx)); ok {
		if deadline, ok := c.ctx.Deadline(); ok {
			left = time.Until(deadline)
		}
	}
	return time.Now().Add(min(max(left, least), most))
}
