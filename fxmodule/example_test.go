package fxmodule_test

import (
	"context"
	"fmt"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
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
