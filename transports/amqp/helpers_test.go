package amqp_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
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

// awaitHeld waits until a transport's ordered groups have this many messages that are poisoned or parked, and this many that wait
// for a time. The time may have come meanwhile.
func awaitHeld(t testing.TB, transport *amqp.Transport, parked, waiting int, due time.Time) {
	t.Helper()
	eventually(t, "messages are held", func() bool {
		held := transport.HeldForTest()
		return held == parked+waiting || held >= parked && time.Now().After(due)
	})
}

// withBroker runs do on a connection that is not leat's.
func withBroker(t testing.TB, raw string, do func(*rabbit.Channel)) {
	t.Helper()
	conn, err := rabbit.DialConfig(bare(raw), rabbit.Config{Heartbeat: patience})
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, ch.Confirm(false))
	var confirmed atomic.Uint64
	confirmations := ch.NotifyPublish(make(chan rabbit.Confirmation, 1))
	go func() { // ends with the connection
		for range confirmations {
			confirmed.Add(1)
		}
	}()
	do(ch)
	// The end of a channel may lose what it has published to a quorum queue and is not confirmed.
	eventually(t, "what was published is confirmed", func() bool {
		return ch.IsClosed() || confirmed.Load() >= ch.GetNextPublishSeqNo()-1
	})
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

// poisonedMessages returns n new messages for the poison queue of a group.
func poisonedMessages(group, topic string, n int, body []byte) []driver.PoisonedMessage {
	msgs := make([]driver.PoisonedMessage, n)
	for i := range msgs {
		msgs[i].Message = message.NewMessage(fmt.Sprintf("m-%05d", i), slices.Clone(body))
		driver.Fault{Topic: topic, Group: group}.Set(msgs[i].Message.Metadata)
	}
	return msgs
}
