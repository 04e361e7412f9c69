package queue

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// TestWaker_idleGroupsCostLittle checks that two processes with fifteen idle groups each, while a third one publishes for
// other groups, run fewer queries than if each group polled.
func TestWaker_idleGroupsCostLittle(t *testing.T) {
	ctx := t.Context()
	const groups, messages = 15, 100
	db, cfg, trips := pgxSchema(t)
	busyDB, _, _ := pgxSchema(t)
	start := func(db *database.PgxPool) *Transport {
		transport, err := Open(ctx, db, cfg)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, transport.Close(context.Background())) })
		return transport
	}
	for p := range 2 {
		idle := start(db)
		for g := range groups {
			receiver, err := idle.Subscribe(ctx, driver.Subscription{Group: fmt.Sprintf("idle%d.g%d", p, g), Topics: []string{"nothing.v1"}, Concurrency: 2})
			require.NoError(t, err)
			waiting, cancel := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = receiver.Next(waiting)
			}()
			t.Cleanup(func() { cancel(); <-ended })
		}
	}
	busy := start(busyDB)
	receiver, err := busy.Subscribe(ctx, driver.Subscription{Group: "busy.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
	require.NoError(t, err)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 20 { // the receivers poll often at first
		before, began := trips.n.Load(), time.Now()
		for range messages {
			<-tick.C
			require.NoError(t, busy.Publish(ctx, "order.paid.v1", keyedMessage("m")))
			d, err := receiver.Next(ctx)
			require.NoError(t, err)
			require.NoError(t, d.Settler.Ack())
		}
		rate := float64(trips.n.Load()-before) / time.Since(began).Seconds()
		t.Logf("%d idle groups: %.1f round trips a second", 2*groups, rate)
		if rate < 20 {
			return
		}
	}
	require.Fail(t, "idle groups keep asking")
}
