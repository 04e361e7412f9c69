// Command hello publishes one event, handles it and ends:
//
//	go run ./examples/hello
package main

import (
	"context"
	"fmt"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
)

// Visited is an event: a struct with a name and a version.
type Visited struct{ Name string }

// EventType returns the event's name and version on the wire.
func (Visited) EventType() (name string, version int) { return "hello.visited", 1 }

// Greeter has dependencies from fx. Any function of a context and an event is a handler.
type Greeter struct{ fx.Shutdowner }

// Greet handles the event, and ends the program.
func (g Greeter) Greet(_ context.Context, e Visited) error {
	fmt.Println("hello,", e.Name)
	return g.Shutdown()
}

func main() {
	fxmodule.Main(
		fxmodule.Module, // LEAT_URL names the transport; without it, memory://
		fx.Provide(func(s fx.Shutdowner) Greeter { return Greeter{s} }),
		fxmodule.HandleMethod("greet", Greeter.Greet),
		fx.Invoke(func(lc fx.Lifecycle, b *bus.Bus) {
			lc.Append(fx.StartHook(func(ctx context.Context) error { return b.Publish(ctx, Visited{"world"}) }))
		}),
	)
}
