package driver

// HealthChecker is a [Transport] that reports its health. It is optional; every transport of leat is one.
type HealthChecker interface {
	// Health returns the state of the transport, as far as it is known. It does not block, and may be called
	// concurrently.
	Health() TransportHealth
}

// TransportHealth is the state of a transport's connection to its message system. While the connection is lost or blocked,
// publishers wait as long as their contexts allow, and groups get no messages.
type TransportHealth struct {
	Transport  string // the kind of transport: memory, amqp, postgres
	Connected  bool
	Err        error  // why it is not connected
	Blocked    string // why the message system accepts no messages; empty if it does
	Reconnects int    // connections that were lost and made again, since the start
	Unroutable int64  // messages published that reached no group, since the start
}
