package bus

import "github.com/leatbus/leat/bus/driver"

import "errors"

// HealthTeller is a [Transport] that tells how it is. It is a transport's choice to be one; every
// transport of leat is.
type HealthTeller interface {
	// Health is how the transport is now, as far as it knows. It does not block, and may be called
	// concurrently.
	Health() driver.TransportHealth
}

// TransportHealth is the state of a transport's way to its message system. While it is not connected
// or blocked, publishers wait within their contexts, and groups with it.
type TransportHealth struct {
	Transport  string // what it is: memory, amqp, postgres
	Connected  bool
	Err        error  // why it is not connected
	Blocked    string // why the message system accepts no messages; empty when it does
	Reconnects int    // connections that were lost and made again, since the start
	Unroutable int64  // messages published that no group wanted, since the start
}

// wrong is what is wrong, nil where nothing is.
func (h driver.TransportHealth) wrong() error {
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

// TransportHealth is how the bus's transport is; ok is false where it does not tell.
func (b *Bus) TransportHealth() (h driver.TransportHealth, ok bool) {
	teller, ok := b.transport.(driver.HealthChecker)
	if !ok {
		return h, false
	}
	return teller.Health(), true
}
