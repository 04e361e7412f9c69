package fxmodule_test

import (
	"context"
	"fmt"
	"os"
	"strings"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/handlers"
)

type OrderPaid struct{ OrderID string }

func (OrderPaid) EventType() (name string, version int) { return "order.paid", 1 }

// Ledger is a part of the application; its methods are handlers.
type Ledger struct{ booked chan string }

func NewLedger() *Ledger { return &Ledger{booked: make(chan string, 1)} }

func (l *Ledger) Record(_ context.Context, e OrderPaid) error {
	l.booked <- e.OrderID
	return nil
}

func Example() {
	var ledger *Ledger
	app := fx.New(
		fx.NopLogger,
		fxmodule.Module,
		fx.Provide(NewLedger),
		fxmodule.HandleMethod("ledger", (*Ledger).Record),
		fx.Invoke(func(lc fx.Lifecycle, b *bus.Bus) {
			lc.Append(fx.StartHook(func(ctx context.Context) error {
				return b.Publish(ctx, OrderPaid{OrderID: "42"})
			}))
		}),
		fx.Populate(&ledger),
	)
	ctx := context.Background()
	if err := app.Start(ctx); err != nil { // a service calls app.Run()
		panic(err)
	}
	fmt.Println("booked", <-ledger.booked)
	fmt.Println(app.Stop(ctx))
	// Output:
	// booked 42
	// <nil>
}

// Shop is a part of the application.
type Shop struct{ Name string }

// fx provides the dependencies of HandleFunc's constructor.
func ExampleHandleFunc() {
	done := make(chan struct{})
	app := fx.New(
		fx.NopLogger,
		fxmodule.Module,
		fx.Supply(&Shop{Name: "Ada's"}),
		fxmodule.HandleFunc(func(shop *Shop) bus.Handler {
			return handlers.Func("print", func(_ context.Context, e OrderPaid) error {
				fmt.Println("order", e.OrderID, "at", shop.Name)
				close(done)
				return nil
			}, handlers.Concurrency(1))
		}),
		fx.Invoke(func(lc fx.Lifecycle, b *bus.Bus) {
			lc.Append(fx.StartHook(func(ctx context.Context) error { return b.Publish(ctx, OrderPaid{OrderID: "42"}) }))
		}),
	)
	ctx := context.Background()
	if err := app.Start(ctx); err != nil {
		panic(err)
	}
	<-done
	fmt.Println(app.Stop(ctx))
	// Output:
	// order 42 at Ada's
	// <nil>
}

// A misspelt variable is an error at the start, not a default.
func ExampleConfigFromEnv() {
	if err := os.Setenv("LEAT_DRAIN_TIMEOU", "1m"); err != nil {
		panic(err)
	}
	defer os.Unsetenv("LEAT_DRAIN_TIMEOU")
	_, err := fxmodule.ConfigFromEnv()
	what, _, _ := strings.Cut(err.Error(), ";")
	fmt.Println(what)
	// Output: fxmodule: configuration: unknown variable LEAT_DRAIN_TIMEOU
}
