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
