package transports_test

import (
	"context"
	"fmt"
	"net/url"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/memory"
)

// The URL is configuration: with amqp:// in its place nothing else changes.
func ExampleOpen() {
	ctx := context.Background()
	transport, err := transports.Open(ctx, "memory://?bytes=16777216")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(transport.Close(ctx))

	_, err = transports.Open(ctx, "memroy://")
	fmt.Println(err)
	// Output:
	// <nil>
	// transports: no transport for "memroy://"; there are amqp, amqps, mariadb, memory, mysql, postgres, postgresql, sqlite. Did you mean memory://?
}

// A transport of your own joins the others under a scheme of its own.
func ExampleMux_Register() {
	mux := transports.Default()
	mux.Register(func(_ context.Context, u *url.URL) (bus.Transport, error) {
		fmt.Println("opening", u.Host)
		return memory.New(memory.Config{}), nil
	}, "pigeon")
	transport, err := mux.Open(context.Background(), "pigeon://roof")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(transport.Close(context.Background()))
	// Output:
	// opening roof
	// <nil>
}
