package bus

import (
	"errors"

	"github.com/leatbus/leat/bus/driver"
)

// transportProblem returns the problem of a transport, nil if it works.
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

// TransportHealth returns the state of the bus's transport. ok is false if the transport does not report it. It does not
// block.
func (b *Bus) TransportHealth() (h driver.TransportHealth, ok bool) {
	checker, ok := b.transport.(driver.HealthChecker)
	if !ok {
		return h, false
	}
	return checker.Health(), true
}
