package bus_test

import (
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
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
