package sql

import (
	"sync"
	"sync/atomic"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.HealthChecker = (*Transport)(nil)

// link is whether the database can be reached, by the last statement that could tell.
type link struct {
	lost atomic.Bool

	mu         sync.Mutex
	err        error
	reconnects int
}

// fails notes that a connection was lost or could not be made.
func (l *link) fails(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	l.lost.Store(true)
}

// works notes that the database has answered.
func (l *link) works() {
	if !l.lost.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost.CompareAndSwap(true, false) {
		l.err = nil
		l.reconnects++
	}
}

// Health returns that of the last statements; a process that publishes and consumes nothing learns nothing
// new. A database refuses messages one by one, so that it is never blocked.
func (t *Transport) Health() driver.TransportHealth {
	l := t.link
	l.mu.Lock()
	defer l.mu.Unlock()
	h := driver.TransportHealth{
		Transport: string(t.name), Connected: l.err == nil && !t.leases.isClosed(), Err: l.err,
		Reconnects: l.reconnects, Unroutable: t.unroutable.Load(),
	}
	if h.Err == nil && !h.Connected {
		h.Err = driver.ErrClosed
	}
	if err := t.file.gone(); err != nil && h.Err == nil {
		h.Connected, h.Err = false, err
	}
	return h
}
