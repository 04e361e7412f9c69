package sql

import (
	"github.com/leatbus/leat/bus/driver"
)

var _ driver.HealthChecker = (*Transport)(nil)

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
