package memory_test

import (
	"context"
	"fmt"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

type parcelSent struct{ Number int }

func (parcelSent) EventType() (name string, version int) { return "parcel.sent", 1 }

// What is published before Run waits in its group. Close handles it before it returns: nothing else would.
func ExampleNew() {
	transport := memory.New(memory.Config{Bytes: 1 << 20})
	b, err := bus.New(transport, bus.Config{Service: "shop", Stack: middleware.Standard(middleware.Config{})})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = b.Handle(handlers.Func("track", func(_ context.Context, e parcelSent) error {
		fmt.Println("on its way:", e.Number)
		return nil
	}))
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	fmt.Println(b.Publish(ctx, parcelSent{Number: 7}))
	ended := make(chan error)
	go func() { ended <- b.Run(ctx) }()
	if err := b.Idle(ctx); err != nil {
		fmt.Println(err)
	}
	stop()
	fmt.Println(<-ended, b.Close(context.Background()))
	// Output:
	// <nil>
	// on its way: 7
	// <nil> <nil>
}
