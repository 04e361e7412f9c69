package amqp

import "github.com/leatbus/leat/bus/driver"

var _ driver.HealthChecker = (*Transport)(nil)

// Health is connected when both connections are, and blocked when one of them is. It does not block.
func (t *Transport) Health() driver.TransportHealth {
	h := driver.TransportHealth{Transport: Scheme, Connected: true, Unroutable: t.unroutable.Load()}
	for _, l := range t.links() {
		l.mu.Lock()
		h.Reconnects += l.reconnects
		if l.conn == nil {
			h.Connected, h.Err = false, l.lastErr
		}
		if l.blocked != "" {
			h.Blocked = l.blocked
		}
		l.mu.Unlock()
	}
	return h
}
