package sql

import (
	"github.com/leatbus/leat/bus/driver"
)

var _ driver.HealthChecker = (*Transport)(nil)

// Health returns the health by the results of the latest statements. A process that neither publishes nor consumes gets
// no new results. Blocked is always false: a database has no flow control. Health does not block.
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
	if h.Err == nil && l.removed != nil {
		h.Connected, h.Err = false, l.removed
	}
	if err := t.file.gone(); err != nil && h.Err == nil {
		h.Connected, h.Err = false, err
	}
	return h
}
