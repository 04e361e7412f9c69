package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// FreePort returns a free port for a server that the test starts and may restart. It is below the range of ephemeral ports, so
// that no connection uses it while the server is stopped.
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
