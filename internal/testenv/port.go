package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// FreePort is one for a server that the test starts, and may start again. It is
// below those that the system gives to connections, so that none of them takes it
// while the server is away.
func FreePort(t testing.TB) string {
	t.Helper()
	const lowest, beyond = 10_000, 30_000
	var err error
	for range 1000 {
		port := strconv.Itoa(lowest + rand.IntN(beyond-lowest))
		var listener net.Listener
		if listener, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			_ = listener.Close()
			return port
		}
	}
	t.Fatal(fmt.Errorf("testenv: no free port between %d and %d: %w", lowest, beyond, err))
	return ""
}
