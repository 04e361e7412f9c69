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

// A link is a connection to the broker that is opened again when it is lost. A transport has one to publish and one to consume:
// a broker that runs out of memory stops reading from connections that publish, and acks must not wait for that.
type link struct {
	cfg    Config
	role   string
	ctx    context.Context // ends when the link is closed; its cause has the context of Close
	cancel context.CancelCauseFunc
	done   chan struct{}

	mu            sync.Mutex
	conn          *amqp.Connection
	wire          *writeBatcher
	changed       chan struct{} // closed at the next change of the state
	blocked       string        // why the broker has stopped reading; empty if it has not
	lastErr       error
	reconnects    int
	frameSize     int // largest frame that the broker accepts, in bytes
	unstableUntil time.Time
	connecting    chan struct{} // a mutex: holds a token while a group connects, after the broker has closed the connection because of a group
}

// unstableFor is how long groups connect one after the other after the broker has closed the connection because of a group.
const unstableFor = time.Minute

func (l *link) isUnstable() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Before(l.unstableUntil)
}

// openLink opens the first connection. It retries as long as ctx and the configuration allow.
func openLink(ctx context.Context, cfg Config, role string) (*link, error) {
	l := &link{cfg: cfg, role: role, changed: make(chan struct{}), done: make(chan struct{}), connecting: make(chan struct{}, 1)}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	ctx, cancel := backoff.Bound(ctx, cfg.ConnectTimeout, defaultConnectTimeout)
	defer cancel()

	pause := newBackoff()
	var why error // error of the last try that ctx did not end
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
		driver.SetLastError(ctx, why)
		if errors.Is(err, errLogin) || !pause.Wait(ctx) {
			l.cancel(nil)
			return nil, why
		}
	}
}

// run watches the connection and replaces it.
func (l *link) run(conn *amqp.Connection, wire *writeBatcher) {
	defer close(l.done)
	for conn != nil {
		l.watch(conn, wire)
		if l.ctx.Err() != nil {
			return
		}
		conn, wire = l.redial()
	}
}

// watch blocks until the connection has ended.
func (l *link) watch(conn *amqp.Connection, wire *writeBatcher) {
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
				l.cfg.Logger.Warn("leat: amqp: the broker accepts no messages", "reason", b.Reason)
			}
		case reason := <-closed:
			l.set(func() {
				l.conn, l.wire, l.blocked, l.lastErr = nil, nil, "", lost(reason)
				if reason != nil && reason.Code == amqp.InternalError {
					l.unstableUntil = time.Now().Add(unstableFor)
				}
			})
			l.cfg.Logger.Warn("leat: amqp: connection lost", "role", l.role, "error", lost(reason))
			return
		case <-l.ctx.Done():
			_ = conn.CloseDeadline(l.deadline()) // an error means that it was lost
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

// logEvery is how often a failure to connect is logged.
const logEvery = 30 * time.Second

// redial retries until it has a connection. It returns nil if the link is closed.
func (l *link) redial() (*amqp.Connection, *writeBatcher) {
	pause := newBackoff()
	var logged time.Time
	for pause.Wait(l.ctx) {
		conn, wire, err := l.cfg.dial(l.ctx, l.role)
		if err == nil {
			l.set(func() { l.reconnects++ })
			l.cfg.Logger.Info("leat: amqp: connected again", "role", l.role, "host", conn.RemoteAddr().String())
			return conn, wire
		}
		l.set(func() { l.lastErr = err })
		if l.ctx.Err() == nil && time.Since(logged) > logEvery {
			logged = time.Now()
			l.cfg.Logger.Warn("leat: amqp: not connected", "role", l.role, "error", err)
		}
	}
	return nil, nil
}

// set changes the state and wakes the goroutines that wait for a change.
func (l *link) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.changed)
	l.changed = make(chan struct{})
}

// connection blocks until there is a connection or ctx is done. The error says why there is none.
func (l *link) connection(ctx context.Context) (*amqp.Connection, *writeBatcher, error) {
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

// withConnection calls do with the connection, and again if it was lost meanwhile.
func (l *link) withConnection(ctx context.Context, do func(*amqp.Connection) error) error {
	pause := newBackoff()
	for {
		conn, _, err := l.connection(ctx)
		if err != nil {
			return err
		}
		if err = do(conn); err == nil || !conn.IsClosed() {
			return err
		}
		if !pause.Wait(ctx) {
			return notConnected(ctx, err)
		}
	}
}

// withChannel calls do with its own channel, and again if the connection was lost. The end of ctx closes the connection.
func (l *link) withChannel(ctx context.Context, do func(*amqp.Channel) error) error {
	return l.withConnection(ctx, func(conn *amqp.Connection) error {
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		defer closeQuietly(ch)
		defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })()
		return do(ch)
	})
}

// notConnected returns an error with the reason why the caller stopped waiting and the reason why there is no connection.
func notConnected(ctx context.Context, lastErr error) error {
	if lastErr == nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w (%w)", context.Cause(ctx), lastErr)
}

// frame returns the largest frame, in bytes, that was negotiated for the last connection.
func (l *link) frame() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frameSize <= 0 {
		return frameMax
	}
	return l.frameSize
}

// state returns why nothing can be sent now, nil if it can.
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

// close closes the connection with a handshake, as long as ctx allows, and waits for the goroutine.
func (l *link) close(ctx context.Context) {
	l.cancel(&closing{ctx})
	<-l.done
}

// closing is the cause of a closed link's context.
type closing struct{ ctx context.Context }

func (*closing) Error() string { return "closing" }

// deadline returns the time until which the broker may answer the close: at least a short time, even if ctx is done.
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
