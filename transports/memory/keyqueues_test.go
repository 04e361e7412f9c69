package memory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

const topic = "order.paid.v1"

// ledger returns a group that parks, and its poison queue.
func ledger(t *testing.T, transport *memory.Transport) (driver.Receiver, driver.PoisonQueue) {
	t.Helper()
	feed, err := transport.Subscribe(t.Context(), driver.Subscription{
		Group: "shop.ledger", Topics: []string{topic}, Concurrency: 2, Order: driver.OrderedByKey, Park: true,
	})
	require.NoError(t, err)
	return feed, transport.PoisonQueue("shop.ledger")
}

func publish(t *testing.T, transport *memory.Transport, key, id string, headers ...string) {
	t.Helper()
	msg := message.NewMessage(id, []byte("payload"))
	msg.Metadata = message.Metadata{driver.HeaderPartitionKey: key}
	for i := 0; i < len(headers); i += 2 {
		msg.Metadata[headers[i]] = headers[i+1]
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, transport.Publish(ctx, topic, msg))
}

func take(t *testing.T, feed driver.Receiver, id string) *driver.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := feed.Next(ctx)
	require.NoError(t, err)
	require.Equal(t, id, d.Message.UUID)
	return d
}

func poison(t *testing.T, d *driver.Delivery) {
	t.Helper()
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("broken"))))
}

func list(t *testing.T, queue driver.PoisonQueue) []driver.PoisonedMessage {
	t.Helper()
	all, err := queue.List(t.Context(), "", 100)
	require.NoError(t, err)
	return all
}

func TestPark_takesNoSlotInTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{Queue: 100})
		feed, queue := ledger(t, transport)
		publish(t, transport, "a", "a")
		poison(t, take(t, feed, "a"))
		for i := range 100 {
			publish(t, transport, "a", fmt.Sprint(i))
		}
		require.Equal(t, 100, list(t, queue)[0].Parked)
		require.NoError(t, transport.WaitIdle(t.Context()))
		publish(t, transport, "b", "b")
		require.NoError(t, take(t, feed, "b").Settler.Ack())

		_, err := queue.Drop(t.Context(), list(t, queue)[0].ID)
		require.NoError(t, err)
		for i := range 100 {
			require.NoError(t, take(t, feed, fmt.Sprint(i)).Settler.Ack())
		}
		require.NoError(t, transport.WaitIdle(t.Context()))
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestPark_tooManyBlockPublishers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{Bytes: 16 * 650})
		feed, queue := ledger(t, transport)
		publish(t, transport, "a", "first")
		poison(t, take(t, feed, "first"))
		accepted := 0
		for ctx, cancel := context.WithTimeout(t.Context(), time.Minute); ; accepted++ {
			msg := message.NewMessage(fmt.Sprint(accepted), make([]byte, 100))
			msg.Metadata = message.Metadata{driver.HeaderPartitionKey: "a"}
			if err := transport.Publish(ctx, topic, msg); err != nil {
				require.ErrorIs(t, err, context.DeadlineExceeded)
				cancel()
				break
			}
		}
		require.Greater(t, accepted, 8)
		require.Less(t, accepted, 20)
		parked := list(t, queue)[0].Parked
		require.Equal(t, accepted, parked)

		_, err := queue.Replay(t.Context(), list(t, queue)[0].ID)
		require.NoError(t, err)
		require.NoError(t, take(t, feed, "first").Settler.Ack())
		for i := range accepted {
			require.NoError(t, take(t, feed, fmt.Sprint(i)).Settler.Ack())
		}
		publish(t, transport, "a", "last")
		require.NoError(t, take(t, feed, "last").Settler.Ack())
		require.NoError(t, transport.WaitIdle(t.Context()))
		require.NoError(t, transport.Close(t.Context()))
	})
}

// Two messages of a key are poisoned, the later one first: the earlier was published for later.
func TestPark_continuesUpToTheNextPoisonedMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{})
		feed, queue := ledger(t, transport)
		publish(t, transport, "a", "1", driver.HeaderDeliverAt, time.Now().Add(time.Second).Format(time.RFC3339Nano))
		publish(t, transport, "a", "2")
		publish(t, transport, "a", "3")
		poison(t, take(t, feed, "2"))
		poison(t, take(t, feed, "1")) // a second later
		all := list(t, queue)
		require.Equal(t, []int{1, 0}, []int{all[0].Parked, all[1].Parked})

		_, err := queue.Replay(t.Context(), all[0].ID)
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 2, list(t, queue)[0].Parked, "2 waits behind 1 again, and 3 behind both")
		_, err = queue.Drop(t.Context(), all[1].ID)
		require.NoError(t, err)
		require.NoError(t, take(t, feed, "2").Settler.Ack())
		require.NoError(t, take(t, feed, "3").Settler.Ack())
		require.NoError(t, transport.WaitIdle(t.Context()))
		require.NoError(t, transport.Close(t.Context()))
	})
}
