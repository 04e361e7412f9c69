package redisstore_test

import (
	"fmt"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/redisstore"
)

func ExampleOpen() {
	store, err := redisstore.Open("redis://localhost:6379/0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer store.Close()

	// Where a second handling does more harm than a late one, wait for a Redis that is away.
	_ = middleware.Dedup(store, middleware.DedupConfig{Mode: bus.DedupClosed})
	// Output:
}
