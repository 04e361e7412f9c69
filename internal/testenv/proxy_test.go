package testenv_test

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

func TestProxy_forwardsBothDirections(t *testing.T) {
	client := dial(t, testenv.NewProxy(t, echoServer(t)))

	_, err := client.Write([]byte("hello"))
	require.NoError(t, err)
	require.NoError(t, client.(*net.TCPConn).CloseWrite())
	echoed, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "hello", string(echoed))
}

func TestProxy_cutAllResetsConnections(t *testing.T) {
	proxy := testenv.NewProxy(t, echoServer(t))
	before := dial(t, proxy)
	require.NoError(t, roundTrip(before))

	proxy.CutAll()
	require.Error(t, roundTrip(before))
	require.NoError(t, roundTrip(dial(t, proxy)))
}

func TestProxy_stallAndResume(t *testing.T) {
	proxy := testenv.NewProxy(t, echoServer(t))
	before := dial(t, proxy)
	require.NoError(t, roundTrip(before))

	proxy.Stall()
	after := dial(t, proxy)
	for _, client := range []net.Conn{before, after} {
		requireSilence(t, client)
	}
	proxy.Resume()
	for _, client := range []net.Conn{before, after} {
		require.NoError(t, readByte(client, soon), "what was written during the stall comes late, not never")
		require.NoError(t, roundTrip(client))
	}
}

func TestProxy_cutsAStalledConnection(t *testing.T) {
	proxy := testenv.NewProxy(t, echoServer(t))
	client := dial(t, proxy)
	require.NoError(t, roundTrip(client))

	proxy.Stall()
	requireSilence(t, client)
	proxy.CutAll()
	err := readByte(client, soon)
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestProxy_refuseResetsNewConnectionsOnly(t *testing.T) {
	proxy := testenv.NewProxy(t, echoServer(t))
	before := dial(t, proxy)
	require.NoError(t, roundTrip(before))

	proxy.Refuse()
	requireReset(t, proxy)
	require.NoError(t, roundTrip(before))

	proxy.Accept()
	require.NoError(t, roundTrip(dial(t, proxy)))
}

func TestProxy_deadTargetResetsTheClient(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())

	requireReset(t, testenv.NewProxy(t, listener.Addr().String()))
}

func echoServer(t *testing.T) (address string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return listener.Addr().String()
}

func dial(t *testing.T, proxy *testenv.Proxy) net.Conn {
	conn, err := net.Dial("tcp", proxy.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// requireReset allows for both: the reset is seen while dialing or after it.
func requireReset(t *testing.T, proxy *testenv.Proxy) {
	conn, err := net.Dial("tcp", proxy.Addr())
	if err == nil {
		defer conn.Close()
		err = roundTrip(conn)
	}
	require.Error(t, err)
}

func requireSilence(t *testing.T, conn net.Conn) {
	_, err := conn.Write([]byte("x"))
	require.NoError(t, err)
	require.ErrorIs(t, readByte(conn, 50*time.Millisecond), os.ErrDeadlineExceeded)
}

const soon = time.Minute // on a busy machine; on an idle one at once

// roundTrip has a byte echoed.
func roundTrip(conn net.Conn) error {
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	return readByte(conn, soon)
}

func readByte(conn net.Conn, within time.Duration) error {
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}
