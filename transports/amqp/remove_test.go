package amqp_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// Other groups have names that begin with that of the removed one, or are like those of its queues.
func TestRemoveGroup_deletesItsQueuesAlone(t *testing.T) {
	for _, queueType := range []string{"quorum", "classic"} {
		t.Run(queueType, func(t *testing.T) {
			broker := withOptions(testenv.ManagedRabbitMQ(t), "queue="+queueType)
			group := "remove-" + queueType
			subscribe := func(name string, order driver.Order) []string {
				transport := open(t, broker)
				_, err := transport.Subscribe(t.Context(), driver.Subscription{
					Group: name, Topics: []string{"remove.me.v1"}, Concurrency: 1, Order: order, Delays: []time.Duration{5 * time.Second, 90 * time.Minute},
				})
				require.NoError(t, err)
				queues := transport.QueuesForTest()
				require.Greater(t, len(queues), 3)
				require.NoError(t, transport.Close(t.Context()))
				return queues
			}
			gone := subscribe(group, driver.OrderedByKey)
			var kept []string
			for _, other := range []string{group + ".retry.5m", group + ".copy", group + "2"} {
				kept = append(kept, subscribe(other, driver.Unordered)...)
			}
			operator := open(t, broker, func(c *amqp.Config) { c.Operator = true })
			defer func() { require.NoError(t, operator.Close(t.Context())) }()
			require.NoError(t, operator.RemoveGroup(t.Context(), group))
			for _, queue := range gone {
				found, err := operator.FindGroup(t.Context(), queue)
				require.NoError(t, err)
				require.Empty(t, found)
			}
			for _, queue := range kept {
				found, err := operator.FindGroup(t.Context(), queue)
				require.NoError(t, err)
				require.Equal(t, queue, found)
			}
		})
	}
}

func TestRemoveGroup_leavesQueuesOfWatermill(t *testing.T) {
	transport := open(t, withOptions(testenv.ManagedRabbitMQ(t), "topology=watermill"))
	defer func() { require.NoError(t, transport.Close(t.Context())) }()
	require.ErrorIs(t, transport.RemoveGroup(t.Context(), "shop.mail"), driver.ErrUnsupported)
}
