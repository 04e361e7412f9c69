package handlers_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
)

type Paid struct{ OrderID string }

func (Paid) EventType() (name string, version int) { return "order.paid", 1 }

type ReceiptSent struct{ OrderID string }

func (ReceiptSent) EventType() (name string, version int) { return "receipt.sent", 1 }

// ExampleReply publishes what a handler returns, and sees it in a raw handler on a pattern.
func ExampleReply() {
	h := bustest.New(&testing.T{}, // a test gives its own
		handlers.Reply("send-receipt", func(_ context.Context, e Paid) (ReceiptSent, error) {
			return ReceiptSent(e), nil
		}),
		handlers.Raw("audit", []string{"receipt.>"}, func(_ context.Context, msg *message.Message) error {
			fmt.Println(driver.TopicOf(msg), string(msg.Payload))
			return nil
		}))
	h.Publish(Paid{OrderID: "42"})
	h.WaitIdle()
	fmt.Println(h.Bus().Close(context.Background()))
	// Output:
	// receipt.sent.v1 {"OrderID":"42"}
	// <nil>
}

// ExampleBatch takes events together; each still has an outcome of its own.
func ExampleBatch() {
	h := bustest.New(&testing.T{}, handlers.Batch("index", handlers.BatchSize{Max: 3}, func(_ context.Context, events []Paid) error {
		fmt.Println(len(events), "at once")
		return nil
	}))
	for _, id := range []string{"1", "2", "3"} {
		h.Publish(Paid{OrderID: id})
	}
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())
	// Output: 3 at once
}
