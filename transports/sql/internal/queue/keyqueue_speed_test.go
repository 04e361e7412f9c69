package queue

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// TestKeyQueues_quickHandlersAreKeptBusy compares the speed of a group that is ordered by key with an unordered one, with
// handlers that take a millisecond. If the workers alternate in two halves, the speed is halved.
func TestKeyQueues_quickHandlersAreKeptBusy(t *testing.T) {
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		if transport.core.Name == sqlconfig.SQLite {
			t.Skip("its driver is many times slower under the race detector")
		}
		const messages, keys, workers = 3000, 200, 10
		drain := func(group string, order driver.Order) time.Duration {
			sub := driver.Subscription{Group: group, Topics: []string{group}, Concurrency: workers, Order: order}
			receiver, err := transport.Subscribe(ctx, sub)
			require.NoError(t, err)
			var msgs []*message.Message
			for i := range messages {
				msgs = append(msgs, keyedMessage(fmt.Sprintf("key-%d", i%keys)))
			}
			require.NoError(t, transport.Publish(ctx, group, msgs...))
			done := make(chan struct{}, messages)
			consuming, stop := context.WithCancel(ctx)
			var wg sync.WaitGroup
			began := time.Now()
			for range workers {
				wg.Go(func() {
					for {
						d, err := receiver.Next(consuming)
						if err != nil {
							return
						}
						backoff.Sleep(consuming, time.Millisecond) // the handler
						_ = d.Settler.Ack()
						done <- struct{}{}
					}
				})
			}
			for range messages {
				<-done
			}
			took := time.Since(began)
			stop()
			wg.Wait()
			require.NoError(t, receiver.Close(ctx))
			return took
		}
		for range 5 { // other load on the machine may slow down one of the two
			unordered, ordered := drain("unordered", driver.Unordered), drain("ordered", driver.OrderedByKey)
			t.Logf("unordered %.0f/s, ordered by key %.0f/s: %.2f of it",
				messages/unordered.Seconds(), messages/ordered.Seconds(), unordered.Seconds()/ordered.Seconds())
			if ordered < 6*unordered {
				return
			}
		}
		require.Fail(t, "the workers of the ordered group wait")
	})
}

// TestKeyQueues_claimsReadNoWholeQueues: to see that messages are the first of their keys, MariaDB and MySQL read a few rows for each,
// however long the queues are.
func TestKeyQueues_claimsReadNoWholeQueues(t *testing.T) {
	eachStore(t, func(t *testing.T, transport *Transport) {
		if transport.core.Name != sqlconfig.MySQL {
			t.Skip("the other planners read the index from its start")
		}
		ctx := t.Context()
		const keys, each = 20, 200
		sub := driver.Subscription{Group: "ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1, Order: driver.OrderedByKey}
		receiver, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		require.NoError(t, receiver.Close(ctx))
		var msgs []*message.Message
		for i := range keys * each {
			msgs = append(msgs, keyedMessage(fmt.Sprintf("key-%d", i%keys)))
		}
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", msgs...))
		g, _, err := transport.core.groups.find(ctx, "ledger")
		require.NoError(t, err)
		queues := transport.core.keyQueues
		require.NoError(t, queues.groups.locked(ctx, transport.core.Pool, g, func(tx lockedGroup) error {
			heads, _, err := queues.heads(ctx, tx, g, noKeyQueue, keys)
			require.NoError(t, err)
			require.Len(t, heads, keys)
			read := func() (n int) {
				counts, err := database.Collect(ctx, tx, func(r database.Rows, n *int) error { return r.Scan(new(string), n) }, `SHOW SESSION STATUS LIKE 'Handler_read%'`)
				require.NoError(t, err)
				for _, count := range counts {
					n += count
				}
				return n
			}
			c := keyClaim{claim: claim{group: g}, lows: new(keyLows)}
			before := read()
			free, err := queues.freeHeads(ctx, tx, c, heads, new(keysFound))
			require.NoError(t, err)
			require.Len(t, free, keys)
			require.Less(t, read()-before, 20*keys)
			for _, h := range heads {
				c.queues = append(c.queues, h.queue)
			}
			before = read()
			first, err := queues.headsOf(ctx, tx, c)
			require.NoError(t, err)
			require.ElementsMatch(t, heads, first)
			require.Less(t, read()-before, 20*keys)
			return nil
		}))
	})
}
