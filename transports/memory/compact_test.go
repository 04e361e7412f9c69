package memory_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

// dead returns a poison queue of that many bytes, and a function that makes messages for it.
func dead(t *testing.T, size int) (driver.PoisonQueue, func(id int, headers message.Metadata) driver.PoisonedMessage) {
	t.Helper()
	transport := memory.New(memory.Config{PoisonBytes: size})
	t.Cleanup(func() { require.NoError(t, transport.Close(t.Context())) })
	_, err := transport.Subscribe(t.Context(), driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
	require.NoError(t, err)
	return transport.PoisonQueue("shop.ledger"), func(id int, headers message.Metadata) driver.PoisonedMessage {
		msg := message.NewMessage(fmt.Sprint(id), []byte("{}"))
		msg.Metadata = headers
		msg.Metadata[driver.HeaderID] = msg.UUID
		msg.Metadata[driver.HeaderType] = "order.paid.v1"
		msg.Metadata[driver.HeaderFaultTopic] = "order.paid.v1"
		return driver.PoisonedMessage{Message: msg}
	}
}

// fill puts messages into the queue and requires that they come out as they were.
func fill(t *testing.T, queue driver.PoisonQueue, msgs ...driver.PoisonedMessage) {
	t.Helper()
	require.NoError(t, queue.Put(t.Context(), msgs...))
	list, err := queue.List(t.Context(), "", len(msgs)+1)
	require.NoError(t, err)
	require.Len(t, list, len(msgs))
	for i, m := range msgs {
		require.Equal(t, m.Message.UUID, list[i].Message.UUID)
		require.Equal(t, m.Message.Metadata, list[i].Message.Metadata)
		require.Equal(t, m.Message.Payload, list[i].Message.Payload)
	}
}

func TestPoisonQueue_sharesCommonFields(t *testing.T) {
	queue, makeDead := dead(t, 100<<10)
	var msgs []driver.PoisonedMessage
	for i := range 500 { // with a stack in each, more than 2 MB
		msgs = append(msgs, makeDead(i, message.Metadata{
			driver.HeaderFaultStack: strings.Repeat("main.Book\n\tmain.go:7\n", 180),
			driver.HeaderFaultBuild: "example.com/shop@v1.2.3",
		}))
	}
	fill(t, queue, msgs...)
}

func TestPoisonQueue_keepsDifferentFields(t *testing.T) {
	queue, makeDead := dead(t, 1<<20)
	var msgs []driver.PoisonedMessage
	for i := range 500 { // more names than are shared
		msgs = append(msgs, makeDead(i, message.Metadata{fmt.Sprint("ce_", strings.Repeat("x", 1000), i): "", "": "\x00"}))
	}
	fill(t, queue, msgs...)
}
