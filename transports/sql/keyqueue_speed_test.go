package sql

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
)

// TestKeyQueues_quickHandlersAreKeptBusy compares a group that is ordered by key with one that is not, in the same
// run, with handlers of a millisecond. Two halves of the workers that take turns halve the speed at least.
func TestKeyQueues_quickHandlersAreKeptBusy(t *testing.T) {
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		if transport.name == SQLite {
			t.Skip("its driver is many times slower under the race detector")
		}
		const messages, keys, workers = 3000, 200, 10
		drain := func(group string, order driver.Order) time.Duration {
			sub := driver.Subscription{Group: group, Topics: []string{group}, Concurrency: workers, Order: order}
			feed, err := transport.Subscribe(ctx, sub)
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
						d, err := feed.Next(consuming)
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
			require.NoError(t, feed.Close(ctx))
			return took
		}
		for range 5 { // whoever else uses the machine may take the time of one of the two
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
