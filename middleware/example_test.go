package middleware_test

import (
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
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
	// middleware: step "poison" stands inside "retry" and must stand outside of it: poison takes what every try has failed, and would poison on the first failure
}
