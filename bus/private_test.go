package bus_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

// TestPrivateHeaders_areRefusedAtPublish: else a producer could set a message's count of failures.
func TestPrivateHeaders_areRefusedAtPublish(t *testing.T) {
	transport := memory.New(memory.Config{})
	defer func() { require.NoError(t, transport.Close(t.Context())) }()
	b, err := bus.New(transport, bus.Config{Service: "shop"})
	require.NoError(t, err)
	for _, name := range []string{driver.HeaderFaultFailures, driver.HeaderFaultGroup, "leat_anything"} {
		msg := message.NewMessage("m", nil)
		msg.Metadata = message.Metadata{driver.HeaderType: "order.paid.v1", name: "1"}
		for _, err := range []error{bus.NewPublisher(transport).Publish("order.paid.v1", msg), b.PublishMessages(t.Context(), msg)} {
			require.ErrorContains(t, err, `header "`+name+`"`)
			require.ErrorContains(t, err, "delete it")
		}
	}
	for _, name := range []string{driver.HeaderDeliverAt, driver.HeaderInstance, driver.HeaderTypes} { // as a forwarded message has
		msg := message.NewMessage("m", nil)
		msg.Metadata = message.Metadata{name: ""}
		require.NoError(t, bus.NewPublisher(transport).Publish("order.paid.v1", msg))
	}
	headers := message.Metadata{"leat_anything": "", driver.HeaderFaultFailures: "9", driver.HeaderInstance: "i", "leaf": "x"}
	driver.DropPrivate(headers)
	require.Equal(t, message.Metadata{driver.HeaderInstance: "i", "leaf": "x"}, headers)
}

// forged is what a foreign writer would like a service to believe.
func forged() message.Metadata {
	return message.Metadata{
		driver.HeaderType: "order.paid.v1", "leat_anything": "1", driver.HeaderFaultFailures: "9", driver.HeaderFaultGroup: "other",
		driver.HeaderFaultFailedAt: "2020-01-01T00:00:00Z", "colour": "red",
	}
}

func requireUnforged(t *testing.T, msg *message.Message) {
	t.Helper()
	require.Equal(t, "red", msg.Metadata["colour"])
	for name := range msg.Metadata {
		require.False(t, strings.HasPrefix(name, "leat_") && name != driver.HeaderInstance, name)
	}
}

func TestWatermill_ignoresPrivateHeadersOfOthers(t *testing.T) {
	channel := gochannel.NewGoChannel(gochannel.Config{Persistent: true}, watermill.NopLogger{})
	b := busOver(t, bus.Watermill{
		Publisher: channel, Subscriber: func(string) (message.Subscriber, error) { return channel, nil },
	}.Transport(), bus.Config{})
	got := make(chan *message.Message, 1)
	var failures atomic.Int64
	handle(t, b, "ledger", func(ctx context.Context, msg *message.Message) error {
		failures.Store(int64(bus.DeliveryFrom(ctx).Failures))
		got <- msg.Copy()
		return nil
	})
	run(t, b)
	msg := message.NewMessage("m", nil)
	msg.Metadata = forged()
	require.NoError(t, channel.Publish("order.paid.v1", msg)) // not by leat
	requireUnforged(t, <-got)
	require.Zero(t, failures.Load())
}

func TestSubscriber_ignoresPrivateHeadersOfOthers(t *testing.T) {
	transport := testenv.Changing{Transport: memory.New(memory.Config{}), Change: func(d *driver.Delivery) { d.Message.Metadata = forged() }}
	defer func() { require.NoError(t, transport.Close(t.Context())) }()
	subscriber := bus.NewSubscriber(transport, "shop")
	msgs, err := subscriber.Subscribe(t.Context(), "order.paid.v1")
	require.NoError(t, err)
	require.NoError(t, bus.NewPublisher(transport).Publish("order.paid.v1", message.NewMessage("m", nil)))
	msg := <-msgs
	requireUnforged(t, msg)
	msg.Ack()
	require.NoError(t, subscriber.Close())
}
