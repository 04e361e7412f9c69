package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
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

// ExampleFunc is the usual handler: a function of a context and an event. Its name is that of its consumer group, for ever.
func ExampleFunc() {
	h := bustest.New(&testing.T{}, handlers.Func("send-receipt", func(_ context.Context, e Paid) error {
		fmt.Println("receipt for order", e.OrderID)
		return nil
	}))
	h.Publish(Paid{OrderID: "42"})
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())
	// Output: receipt for order 42
}

// Ledger has methods for handlers.
type Ledger struct{ total int }

func (l *Ledger) Record(context.Context, Paid) error {
	l.total++
	return nil
}

// ExampleMethod makes a handler of a method. Concurrency(1) keeps two calls from meeting in the ledger.
func ExampleMethod() {
	ledger := &Ledger{}
	h := bustest.New(&testing.T{}, handlers.Method("ledger", ledger, (*Ledger).Record, handlers.Concurrency(1)))
	h.Publish(Paid{OrderID: "1"})
	h.Publish(Paid{OrderID: "2"})
	h.WaitIdle()
	fmt.Println(ledger.total)
	_ = h.Bus().Close(context.Background())
	// Output: 2
}

// ExampleRaw sees every message of a pattern, whatever its type.
func ExampleRaw() {
	h := bustest.New(&testing.T{}, handlers.Raw("audit", []string{"order.>"}, func(_ context.Context, msg *message.Message) error {
		fmt.Println(driver.TopicOf(msg), string(msg.Payload))
		return nil
	}))
	h.Publish(Paid{OrderID: "42"})
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())
	// Output: order.paid.v1 {"OrderID":"42"}
}

// ExampleRoutes puts two types of event into one group: they share its queue, its workers and its order.
func ExampleRoutes() {
	routes := []bus.Handler{
		handlers.Func("paid", func(_ context.Context, e Paid) error {
			fmt.Println("paid", e.OrderID)
			return nil
		}),
		handlers.Func("receipt", func(_ context.Context, e ReceiptSent) error {
			fmt.Println("receipt", e.OrderID)
			return nil
		}),
	}
	h := bustest.New(&testing.T{}, handlers.Routes("timeline", routes, handlers.OrderedStrictly()))
	h.Publish(Paid{OrderID: "42"})
	h.Publish(ReceiptSent{OrderID: "42"})
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())
	// Output:
	// paid 42
	// receipt 42
}

var errNoAccount = errors.New("no such account")

// ExamplePermanentOn sends errors that no retry can heal to the poison queue at once.
func ExamplePermanentOn() {
	tries := 0
	h := bustest.New(&testing.T{}, handlers.Func("refund", func(_ context.Context, e Paid) error {
		tries++
		return fmt.Errorf("refund order %s: %w", e.OrderID, errNoAccount)
	}, handlers.PermanentOn(errNoAccount)))
	h.Publish(Paid{OrderID: "42"})
	h.WaitIdle()
	for _, dead := range h.RequirePoisoned("refund", 1) {
		fmt.Println(tries, "try:", dead.Fault.Text)
	}
	_ = h.Bus().Close(context.Background())
	// Output: 1 try: refund order 42: no such account
}
