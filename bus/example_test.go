package bus_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports"
)

type OrderPaid struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

func (OrderPaid) EventType() (name string, version int) { return "order.paid", 1 }

func SendReceipt(_ context.Context, e OrderPaid) error {
	fmt.Println("receipt for order", e.OrderID)
	return nil
}

// A whole program, without fx: open a transport, make a bus, register plain functions, run.
func Example() {
	ctx := context.Background()
	transport, err := transports.Open(ctx, "memory://")
	if err != nil {
		panic(err)
	}
	b, err := bus.New(transport, bus.Config{Service: "shop", Stack: middleware.Standard(middleware.Config{})})
	if err != nil {
		panic(err)
	}
	if err := b.Handle(handlers.Func("send-receipt", SendReceipt)); err != nil {
		panic(err)
	}
	go func() { _ = b.Run(ctx) }() // a service runs it in the foreground

	if err := b.Publish(ctx, OrderPaid{OrderID: "42", Cents: 1999}); err != nil {
		panic(err)
	}
	_ = b.Idle(ctx) // and does not wait for this
	fmt.Println(b.Close(ctx))
	// Output:
	// receipt for order 42
	// <nil>
}

// A handler steers what happens to a message with the error it returns.
func ExamplePermanent() {
	charge := func(_ context.Context, e OrderPaid) error {
		switch e.OrderID {
		case "no such customer":
			return bus.Permanent(errors.New("no such customer")) // to the poison queue, at once
		case "rate limited":
			return bus.RetryAfter(errors.New("rate limited"), time.Minute) // try again, but not before
		case "too early":
			return bus.Snooze(time.Hour) // come again; nothing failed, and it costs no attempt
		case "irrelevant":
			return bus.Discard(errors.New("irrelevant")) // acked, counted, gone
		default:
			return nil
		}
	}
	fmt.Println(bus.IsPermanent(charge(context.Background(), OrderPaid{OrderID: "no such customer"})))
	// Output: true
}

func ExampleParseCloudEvent() {
	msg, err := bus.ParseCloudEvent([]byte(`{
		"specversion": "1.0", "id": "7", "source": "/pos/3", "type": "order.paid.v1", "subject": "42",
		"data": {"order_id": "42", "cents": 1999}
	}`))
	fmt.Println(err)
	fmt.Println(driver.TopicOf(msg), driver.PartitionKey(msg), string(msg.Payload))

	_, err = bus.ParseCloudEvent([]byte(`{"specversion": "1.0", "id": "7", "type": "order.paid.v1"}`))
	fmt.Println(err)
	// Output:
	// <nil>
	// order.paid.v1 42 {"order_id": "42", "cents": 1999}
	// attribute source is missing or empty
}
