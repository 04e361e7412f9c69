package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

// A key that a poisoned message stops is seen: in the log once, and in the group's health until it is released.
func TestParkedKey_isSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log testenv.Buffer
		b := newBus(t, bus.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		handle(t, b, "ledger", func(_ context.Context, msg *message.Message) error {
			if driver.MessageID(msg) == "bad" {
				return bus.Permanent(errors.New("no such account"))
			}
			return nil
		}, topics("order.placed.v1"), func(h *bus.Handler) { h.Order = bus.OrderedByKey })
		run(t, b)
		synctest.Wait()
		require.Empty(t, b.Health()[0].Degraded)

		keyless := message.NewMessage("bad", nil)
		keyless.Metadata = message.Metadata{driver.HeaderType: "order.placed.v1"}
		require.NoError(t, b.PublishMessages(t.Context(), keyless))
		synctest.Wait()
		require.NotContains(t, log.String(), "leat: key parked")
		time.Sleep(time.Minute) // the group is asked
		synctest.Wait()
		require.Empty(t, b.Health()[0].Degraded)

		for _, id := range []string{"bad", "behind", "further behind"} {
			msg := message.NewMessage(id, nil)
			msg.Metadata = message.Metadata{driver.HeaderType: "order.placed.v1", driver.HeaderPartitionKey: "cup"}
			require.NoError(t, b.PublishMessages(t.Context(), msg))
		}
		synctest.Wait()
		require.Equal(t, 1, strings.Count(log.String(), "leat: key parked"), log.String())
		require.Contains(t, log.String(), "key=cup message_id=bad")
		require.Equal(t, bus.Degraded, b.Health()[0].State)
		require.Equal(t, "a poisoned message holds back the later messages of its key until it is replayed or dropped: leat poison ls --group shop.ledger", b.Health()[0].Degraded["parked"])

		other := message.NewMessage("bad", nil)
		other.Metadata = message.Metadata{driver.HeaderType: "order.placed.v1", driver.HeaderPartitionKey: "pot"}
		require.NoError(t, b.PublishMessages(t.Context(), other))
		synctest.Wait()
		require.Equal(t, "poisoned messages hold back the later messages of 2 keys until they are replayed or dropped: leat poison ls --group shop.ledger", b.Health()[0].Degraded["parked"])

		queue := b.Transport().PoisonQueue("shop.ledger")
		all, err := queue.List(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, all, 3)
		for _, m := range all[1:] { // the first one has no key
			_, err = queue.Drop(t.Context(), m.ID)
			require.NoError(t, err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, bus.Running, b.Health()[0].State)
	})
}

// A process with many groups asks for them one by one, for the one at once in which a key was parked.
func TestParkedKey_isAskedForAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := &countingParked{Transport: memory.New(memory.Config{})}
		b := busOver(t, asked, bus.Config{})
		const groups = 1000
		for i := range groups {
			handle(t, b, fmt.Sprintf("g%d", i), func(context.Context, *message.Message) error {
				return bus.Permanent(errors.New("broken"))
			}, topics(fmt.Sprintf("order.v%d", i)), func(h *bus.Handler) { h.Order = bus.OrderedByKey })
		}
		run(t, b)
		synctest.Wait()
		require.EqualValues(t, groups, asked.counted.Swap(0))
		time.Sleep(10*time.Minute + 100*time.Millisecond) // between two questions
		n := asked.counted.Swap(0)
		require.LessOrEqual(t, n, int64(2*600))
		require.GreaterOrEqual(t, n, int64(groups), "each is asked within ten minutes")

		msg := message.NewMessage("bad", nil)
		msg.Metadata = message.Metadata{driver.HeaderType: "order.v7", driver.HeaderPartitionKey: "cup"}
		require.NoError(t, b.PublishMessages(t.Context(), msg))
		synctest.Wait()
		require.EqualValues(t, 1, asked.counted.Load())
		require.Contains(t, b.Health()[7].Degraded, "parked")
	})
}

type countingParked struct {
	*memory.Transport
	counted atomic.Int64
}

func (c *countingParked) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	receiver, err := c.Transport.Subscribe(ctx, s)
	return &countedReceiver{receiver, c}, err
}

type countedReceiver struct {
	driver.Receiver
	by *countingParked
}

func (c *countedReceiver) ParkedKeys(ctx context.Context) (int, error) {
	c.by.counted.Add(1)
	return c.Receiver.(driver.ParkedKeyCounter).ParkedKeys(ctx)
}
