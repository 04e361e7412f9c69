package bus

import (
	"errors"

	"github.com/leatbus/leat/bus/driver"
)

// transportProblem returns what is wrong with a transport, nil if nothing is.
func transportProblem(h driver.TransportHealth) error {
	switch {
	case !h.Connected && h.Err == nil:
		return errors.New("not connected")
	case !h.Connected:
		return h.Err
	case h.Blocked != "":
		return errors.New(h.Blocked)
	}
	return nil
}

// TransportHealth returns the state of the bus's transport; ok is false if the transport does not report it.
func (b *Bus) TransportHealth() (h driver.TransportHealth, ok bool) {
	checker, ok := b.transport.(driver.HealthChecker)
	if !ok {
		return h, false
	}
	return checker.Health(), true
}
