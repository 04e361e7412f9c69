package bench_test

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// distance simulates a network between a client and the server at target: each byte is delayed by oneWay,
// without a limit of the bandwidth. It returns the address for clients.
func distance(tb testing.TB, target string, oneWay time.Duration) (address string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target) //nolint:noctx // it ends with its client
			if err != nil {
				_ = client.Close()
				continue
			}
			go carry(server, client, oneWay)
			go carry(client, server, oneWay)
		}
	}()
	return listener.Addr().String()
}

// carry ends when from does, and ends to with it.
func carry(to, from net.Conn, oneWay time.Duration) {
	type parcel struct {
		due   time.Time
		bytes []byte
	}
	road := make(chan parcel, 4096)
	go func() {
		defer close(road)
		for {
			buffer := make([]byte, 64<<10)
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			road <- parcel{time.Now().Add(oneWay), buffer[:n]}
		}
	}()
	for p := range road {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.bytes); err != nil {
			_ = from.Close()
		}
	}
	_ = to.Close()
}
