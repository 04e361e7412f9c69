package driver

// HealthChecker is a [Transport] that reports its health. It is optional; every transport of leat is one.
type HealthChecker interface {
	// Health returns the state of the transport, as far as it is known. It does not block, and may be called
	// concurrently.
	Health() TransportHealth
}

// TransportHealth is the state of a transport's connection to its message system. While it is not connected
// or blocked, publishers wait within their contexts, and groups with it.
type TransportHealth struct {
	Transport  string // what it is: memory, amqp, postgres
	Connected  bool
	Err        error  // why it is not connected
	Blocked    string // why the message system accepts no messages; empty when it does
	Reconnects int    // connections that were lost and made again, since the start
	Unroutable int64  // messages published that reached no group, since the start
}
