package queue

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestInspector_readsTheFirstRowsOfALargeBacklog checks that only the first rows are read, and the others counted by the index.
func TestInspector_readsTheFirstRowsOfALargeBacklog(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 2, Order: driver.OrderedByKey}
		receiver, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		waitingKeys(t, transport.core.DB, sub.Group, 30, time.Hour) // delayed
		for i := range 6 {
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", keyedMessage(fmt.Sprint("key-", i))))
		}
		out, err := receiver.Next(ctx)
		require.NoError(t, err)
		require.NoError(t, receiver.Close(ctx)) // gives back the other messages that it had claimed
		count := func(limit int) driver.GroupInfo {
			groups, err := inspector{transport.core.DB, limit}.groups(ctx)
			require.NoError(t, err)
			require.Len(t, groups, 1)
			for _, g := range groups {
				require.WithinDuration(t, time.Now(), g.Oldest, time.Hour)
				return *g
			}
			return driver.GroupInfo{}
		}
		all := count(1000)
		require.Equal(t, []int{30, 1, 5}, []int{all.Delayed, all.InFlight, all.Waiting})
		some := count(10)
		require.Equal(t, 36, some.Delayed+some.InFlight+some.Waiting)
		require.Equal(t, 1, some.InFlight)
		require.LessOrEqual(t, some.Delayed, 10, "the messages behind the first ten count as waiting")
		require.NoError(t, out.Settler.Ack())
	})
}

// countVariable is the number of waiting messages in TestInspector_large.
const countVariable = "LEAT_TEST_COUNT"

// TestInspector_large logs how long it takes to count a large backlog.
func TestInspector_large(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv(countVariable))
	if err != nil {
		t.Skip("takes a while; set " + countVariable + "=1000000")
	}
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		for g := range 5 {
			sub := driver.Subscription{Group: fmt.Sprint("shop.ledger", g), Topics: []string{"order.paid.v1"}, Concurrency: 1, Order: driver.OrderedByKey}
			receiver, err := transport.Subscribe(ctx, sub)
			require.NoError(t, err)
			require.NoError(t, receiver.Close(ctx))
			waitingKeys(t, transport.core.DB, sub.Group, n/5, time.Hour)
		}
		for range 3 {
			began := time.Now()
			groups, err := transport.Groups(ctx)
			require.NoError(t, err)
			require.Len(t, groups, 5)
			t.Logf("%d messages counted in %s", n, time.Since(began))
		}
	})
}
