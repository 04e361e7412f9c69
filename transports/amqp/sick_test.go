package amqp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// sickBroker is a proxy before a broker that answers as a cluster does of which one queue has lost its majority: it
// ends the connection over which that queue is declared.
type sickBroker struct {
	listener net.Listener
	target   string
	queue    atomic.Pointer[string] // nil: no queue is sick
	ended    atomic.Int32
	requests atomic.Int64 // methods that clients have sent
	version  [2][]byte    // the broker's, and what clients are told; of the same length
}

func newSickBroker(t testing.TB, target string) *sickBroker {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b := &sickBroker{listener: listener, target: target}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { b.serve(client) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		all.Wait()
	})
	return b
}

func (b *sickBroker) serve(client net.Conn) {
	server, err := net.Dial("tcp", b.target)
	if err != nil {
		_ = client.Close()
		return
	}
	var both sync.WaitGroup
	defer both.Wait()
	var mu sync.Mutex
	both.Go(func() { // frames from the server, whole ones
		defer func() { _ = client.Close() }()
		in := bufio.NewReader(server)
		for {
			frame, err := readFrame(in)
			if err != nil {
				return
			}
			if b.version[0] != nil {
				frame = bytes.ReplaceAll(frame, b.version[0], b.version[1])
			}
			mu.Lock()
			_, err = client.Write(frame)
			mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	defer func() { _ = server.Close() }()
	in := bufio.NewReader(client)
	header := make([]byte, 8)
	if _, err := io.ReadFull(in, header); err != nil {
		return
	}
	_, _ = server.Write(header)
	for {
		frame, err := readFrame(in)
		if err != nil {
			return
		}
		if frame[0] == 1 {
			b.requests.Add(1)
		}
		if b.isSick(frame) {
			b.ended.Add(1)
			const text = "INTERNAL_ERROR"
			payload := []byte{0, 10, 0, 50, 2, 29, byte(len(text))}
			payload = append(append(payload, text...), 0, 50, 0, 10)
			closing := binary.BigEndian.AppendUint32([]byte{1, 0, 0}, uint32(len(payload)))
			mu.Lock()
			_, _ = client.Write(append(append(closing, payload...), 0xce))
			mu.Unlock()
			_, _ = readFrame(in) // close-ok, or something before it
			return
		}
		if _, err := server.Write(frame); err != nil {
			return
		}
	}
}

func readFrame(in *bufio.Reader) ([]byte, error) {
	head, err := in.Peek(7)
	if err != nil {
		return nil, err
	}
	frame := make([]byte, len(head)+int(binary.BigEndian.Uint32(head[3:]))+1)
	_, err = io.ReadFull(in, frame)
	return frame, err
}

// isSick reports whether a frame declares the sick queue.
func (b *sickBroker) isSick(frame []byte) bool {
	queue := b.queue.Load()
	return queue != nil && frame[0] == 1 && len(frame) > 14 && string(frame[7:11]) == "\x00\x32\x00\x0a" &&
		strings.HasPrefix(string(frame[13:]), *queue)
}

// A group whose queue makes the broker end the connection gets one of its own: others go on.
func TestGroup_aSickQueueEndsNoOtherGroupsConnection(t *testing.T) {
	broker := sharedBroker(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	proxy := newSickBroker(t, u.Host+":"+itoa(u.Port))
	raw := "amqp://" + u.Username + ":" + u.Password + "@" + proxy.listener.Addr().String() + "/"
	parsed, err := url.Parse(raw)
	require.NoError(t, err)
	cfg, err := amqp.ConfigFromURL(parsed)
	require.NoError(t, err)
	log := new(testenv.Buffer)
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	transport, err := amqp.New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { cleanUp(t, broker, transport.QueuesForTest()) })
	sick, healthy, topic := unique("sick"), unique("healthy"), unique("order.paid.v1")
	sickFeed := subscribe(t, transport, driver.Subscription{Group: sick, Topics: []string{topic}, Concurrency: 1})
	feed := subscribe(t, transport, driver.Subscription{Group: healthy, Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "a")
	require.Equal(t, "a", take(t, feed))
	require.Equal(t, "a", take(t, sickFeed))
	name := string(rune(len(sick))) + sick
	proxy.queue.Store(&name)
	withBroker(t, broker, func(ch *rabbit.Channel) {
		_, err := ch.QueueDelete(sick, false, false, false) // its consumer is cancelled, and it is declared again
		require.NoError(t, err)
	})
	interrupted := func(group string) int {
		return strings.Count(log.String(), "consuming is interrupted\" group="+group)
	}
	eventually(t, "the sick group is tried again and again", func() bool { return interrupted(sick) >= 6 })
	require.Less(t, interrupted(healthy), 6)
	before := interrupted(healthy)
	eventually(t, "the sick group is tried once more", func() bool { return interrupted(sick) >= 7 })
	require.Equal(t, before, interrupted(healthy))
	proxy.queue.Store(nil)
	eventually(t, "the group works again", func() bool {
		publish(t, transport, topic, "b")
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		d, err := sickFeed.Next(ctx)
		if err == nil {
			ack(t, d)
		}
		return err == nil
	})
	closeAll(t, transport)
}
