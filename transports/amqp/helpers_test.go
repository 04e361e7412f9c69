package amqp_test

import (
	"context"
	"net"
	"strconv"
	"testing"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func itoa(n int) string { return strconv.Itoa(n) }

func subscribe(t testing.TB, transport driver.Transport, s driver.Subscription) driver.Receiver {
	t.Helper()
	if s.Known == nil {
		s.Known = s.Topics
	}
	feed, err := transport.Subscribe(t.Context(), s)
	require.NoError(t, err)
	return feed
}

func publish(t testing.TB, transport driver.Transport, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, transport.Publish(t.Context(), topic, newMessage(topic, id)))
	}
}

func next(t testing.TB, feed driver.Receiver) *driver.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d, err := feed.Next(ctx)
	require.NoError(t, err, "a message should have come")
	return d
}

func ack(t testing.TB, d *driver.Delivery) {
	t.Helper()
	require.NoError(t, d.Settler.Ack())
}

// take acks the next message and returns its id.
func take(t testing.TB, feed driver.Receiver) string {
	t.Helper()
	d := next(t, feed)
	ack(t, d)
	return driver.MessageID(d.Message)
}

func closeAll(t testing.TB, transports ...driver.Transport) {
	t.Helper()
	for _, transport := range transports {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		require.NoError(t, transport.Close(ctx))
		cancel()
	}
}

// withBroker runs do on a connection that is not leat's.
func withBroker(t testing.TB, raw string, do func(*rabbit.Channel)) {
	t.Helper()
	conn, err := rabbit.Dial(bare(raw))
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	require.NoError(t, err)
	do(ch)
}

func deleteExchange(t testing.TB, raw, name string) {
	t.Helper()
	withBroker(t, raw, func(ch *rabbit.Channel) { require.NoError(t, ch.ExchangeDelete(name, false, false)) })
}

// silentServer accepts connections and says nothing.
func silentServer(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	return listener.Addr().String()
}
