package middleware_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
)

// The stack is an ordered value: a step of your own goes before or after one that is there, and an
// order in which messages would get lost is refused at start.
func ExampleStack() {
	tracing := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) { return next(msg) }
	}
	stack := middleware.Standard(middleware.Config{}).
		Before(middleware.StepRetry, middleware.Use("tracing", tracing)).
		Without(middleware.StepTimeout)
	fmt.Println(stack.Names())

	wrong := middleware.NewStack(
		middleware.Use(middleware.StepRetry, middleware.Retry(bus.RetryPolicy{})),
		middleware.Use(middleware.StepPoison, middleware.Poison(middleware.PoisonConfig{})),
	)
	_, err := wrong.Wrap(bus.Handler{}, nil)
	fmt.Println(err)
	// Output:
	// [observe poison dedup tracing retry recover version]
	// middleware: step "poison" is inside "retry" and must be outside of it: poison takes what every try has failed, and would poison on the first failure
}

type OrderPlacedV1 struct{ Customer string }

func (OrderPlacedV1) EventType() (name string, version int) { return "order.placed", 1 }

type OrderPlaced struct{ First, Last string }

func (OrderPlaced) EventType() (name string, version int) { return "order.placed", 2 }

// An upcaster lifts old versions, so that handlers see only the newest.
func ExampleUpcast() {
	lift := middleware.Upcast(func(old OrderPlacedV1) OrderPlaced {
		first, last, _ := strings.Cut(old.Customer, " ")
		return OrderPlaced{First: first, Last: last}
	})
	greet := handlers.Func("greet", func(_ context.Context, e OrderPlaced) error {
		fmt.Println("dear", e.First)
		return nil
	})
	h := bustest.NewWith(&testing.T{}, bustest.Config{Middleware: middleware.Config{Upcasters: []middleware.Upcaster{lift}}}, greet)
	h.Publish(OrderPlacedV1{Customer: "Ada Lovelace"})
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())
	// Output: dear Ada
}

// A step of your own is any Watermill middleware. Before recover it sees each try.
func ExampleUse() {
	log := func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) {
			fmt.Println("handling", driver.TopicOf(msg))
			return next(msg)
		}
	}
	stack := middleware.Standard(middleware.Config{}).Before(middleware.StepRecover, middleware.Use("log", log))
	h := bustest.NewWith(&testing.T{}, bustest.Config{Stack: &stack}, handlers.Func("greet", func(context.Context, OrderPlaced) error { return nil }))
	h.Publish(OrderPlaced{First: "Ada", Last: "Lovelace"})
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())
	// Output: handling order.placed.v2
}
