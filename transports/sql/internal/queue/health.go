package queue

import "github.com/leatbus/leat/bus/driver"

var _ driver.HealthChecker = (*Transport)(nil)

// Health returns the health by the results of the latest statements. A process that neither publishes nor consumes gets
// no new results. Blocked is always false: a database has no flow control. Health does not block.
func (t *Transport) Health() driver.TransportHealth {
	reconnects, lost := t.core.Link.Status()
	h := driver.TransportHealth{
		Transport: string(t.core.Name), Connected: lost == nil && !t.core.leases.isClosed(), Err: lost,
		Reconnects: reconnects, Unroutable: t.unroutable.Load(),
	}
	if h.Err == nil && !h.Connected {
		h.Err = driver.ErrClosed
	}
	if removed := t.core.leases.missing(); h.Err == nil && removed != nil {
		h.Connected, h.Err = false, removed
	}
	if err := t.core.FileGone(); err != nil && h.Err == nil {
		h.Connected, h.Err = false, err
	}
	return h
}
