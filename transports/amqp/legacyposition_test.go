package amqp_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// What a closing consumer has fetched and not handed out goes back to its place, where order counts.
func TestOrder_outlivesADeploy(t *testing.T) {
	broker := sharedBroker(t)
	for name, sub := range map[string]driver.Subscription{
		"one worker":       {Concurrency: 1},
		"ordered by key":   {Concurrency: 4, Order: driver.OrderedByKey},
		"ordered strictly": {Concurrency: 1, Order: driver.OrderedStrictly},
	} {
		t.Run(name, func(t *testing.T) {
			sub.Group, sub.Topics = unique("ledger"), []string{unique("order.paid.v1")}
			publisher := open(t, broker)
			subscribe(t, publisher, sub)
			const n = 120
			for i := range n {
				msg := newMessage(sub.Topics[0], fmt.Sprintf("%03d", i))
				msg.Metadata[driver.HeaderPartitionKey] = "one key"
				require.NoError(t, publisher.Publish(t.Context(), sub.Topics[0], msg))
			}
			for i := 0; i < n; {
				consumer := open(t, broker)
				feed := subscribe(t, consumer, sub)
				for range 20 {
					require.Equal(t, fmt.Sprintf("%03d", i), take(t, feed))
					i++
				}
				closeAll(t, consumer)
			}
			closeAll(t, publisher)
		})
	}
}
