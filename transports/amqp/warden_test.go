//go:build unix

package amqp_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

// A process that takes delayed messages, and can't publish them any more, gives them back to others.
func TestDelayedMessagesOfAProcessThatCantPublish(t *testing.T) {
	b := ownBroker(t)
	proxy := testenv.NewProxy(t, b.addr())
	broken := open(t, strings.Replace(withOptions(b.url(), "name=broken"), b.addr(), proxy.Addr(), 1))
	const n = 10
	topic := unique("order.paid.v1")
	sub := driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 4}
	var feed driver.Receiver
	healthy := func() driver.Transport {
		transport := open(t, b.url())
		feed = subscribe(t, transport, sub)
		return transport
	}
	subscribe(t, broken, sub)
	var msgs []*message.Message
	for i := range n {
		msg := newMessage(topic, strconv.Itoa(i))
		msg.Metadata[driver.HeaderDeliverAt] = time.Now().Add(10 * time.Second).UTC().Format(time.RFC3339Nano)
		msgs = append(msgs, msg)
	}
	require.NoError(t, broken.Publish(t.Context(), topic, msgs...))
	eventually(t, "the process has them", func() bool { return broken.DelayedForTest() == n })
	proxy.Refuse()
	closed := 0
	for line := range strings.Lines(b.ctl(t, "list_connections", "--no-table-headers", "pid", "client_properties")) {
		pid, properties, _ := strings.Cut(line, "\t")
		if strings.Contains(properties, "broken (publish)") {
			b.ctl(t, "close_connection", pid, "testing")
			closed++
		}
	}
	require.Equal(t, 1, closed)
	other := healthy()
	for range n {
		take(t, feed)
	}
	require.False(t, broken.Health().Connected)
	proxy.Accept()
	eventually(t, "it is connected again", func() bool { return broken.Health().Connected })
	closeAll(t, broken, other)
	require.Zero(t, depth(t, b.url(), sub.Group))
}
