package redisstore_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/redisstore"
)

type invoiceSent struct{ Number int }

func (invoiceSent) EventType() (name string, version int) { return "invoice.sent", 1 }

// Processes with the same Redis share the records of handled messages: here the second one finds that the first has handled the event.
func ExampleNew() {
	server := miniredis.NewMiniRedis() // a Redis for this example
	if err := server.Start(); err != nil {
		fmt.Println(err)
		return
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), ContextTimeoutEnabled: true})
	defer client.Close()

	for process := range 2 {
		store, err := redisstore.New(client)
		if err != nil {
			fmt.Println(err)
			return
		}
		h := bustest.NewWith(&testing.T{}, bustest.Config{Middleware: middleware.Config{Store: store}},
			handlers.Func("book", func(_ context.Context, e invoiceSent) error {
				fmt.Println("process", process, "booked invoice", e.Number)
				return nil
			}))
		h.Publish(invoiceSent{Number: 7}, bus.WithID("invoice-7")) // the same id from both
		h.WaitIdle()
		_ = h.Bus().Close(context.Background())
	}
	// Output: process 0 booked invoice 7
}

// Open is for a service without its own Redis client. It does not wait for Redis: if Redis can't be reached, handlers run without
// dedup, or wait if that does less harm.
func ExampleOpen() {
	store, err := redisstore.Open("redis://localhost:6379/0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer store.Close()
	stack := middleware.Standard(middleware.Config{Store: store, Dedup: middleware.DedupConfig{Mode: bus.DedupClosed}})
	fmt.Println(stack.Names())
	// Output: [observe poison dedup retry recover timeout version]
}
