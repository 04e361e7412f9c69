package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
)

func Example() {
	t := &testing.T{} // the test's own
	h := bustest.New(t, handlers.Func("archive", func(context.Context, ReceiptSent) error {
		return bus.Permanent(errors.New("disk full"))
	}))
	h.Publish(ReceiptSent{OrderID: "42"})
	h.WaitIdle()
	for _, dead := range h.RequirePoisoned("archive", 1) {
		fmt.Println(string(dead.Message.Payload), "failed with", dead.Fault.Text)
	}
	_ = h.Bus().Close(context.Background())
	// Output: {"OrderID":"42"} failed with disk full
}

// ExampleHarness_FailNext lets a handler fail as if its mail server were down, and sees it through its retries.
func ExampleHarness_FailNext() {
	t := &testing.T{} // the test's own
	h := bustest.New(t, handlers.Func("archive", func(context.Context, ReceiptSent) error { return nil }))
	h.FailNext("archive", errors.New("mail server down"))
	h.Publish(ReceiptSent{OrderID: "42"})
	h.WaitIdle()
	h.RequireHandled("archive", 1)
	fmt.Println("failed:", t.Failed())
	_ = h.Bus().Close(context.Background())
	// Output: failed: false
}

// ExampleDuplicate publishes an event twice under one id: the handler sees it once.
func ExampleDuplicate() {
	t := &testing.T{}
	h := bustest.New(t, handlers.Func("archive", func(_ context.Context, e ReceiptSent) error {
		fmt.Println("archived", e.OrderID)
		return nil
	}))
	h.Publish(ReceiptSent{OrderID: "42"})
	h.WaitIdle()
	bustest.Duplicate[ReceiptSent](h)
	h.WaitIdle()
	h.RequireDuplicates("archive", 1)
	fmt.Println("failed:", t.Failed())
	_ = h.Bus().Close(context.Background())
	// Output:
	// archived 42
	// failed: false
}

// ExampleRequirePublished asks for what handlers publish.
func ExampleRequirePublished() {
	h := bustest.New(&testing.T{}, handlers.Reply("send-receipt", func(_ context.Context, e OrderPaid) (ReceiptSent, error) {
		return ReceiptSent(e), nil
	}))
	h.Publish(OrderPaid{OrderID: "42"})
	h.WaitIdle()
	receipt := bustest.RequirePublished(h, func(e ReceiptSent) bool { return e.OrderID == "42" })
	fmt.Println(receipt.OrderID)
	_ = h.Bus().Close(context.Background())
	// Output: 42
}
