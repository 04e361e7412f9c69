package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
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

		for _, id := range []string{"bad", "behind", "further behind"} {
			msg := message.NewMessage(id, nil)
			msg.Metadata = message.Metadata{driver.HeaderType: "order.placed.v1", driver.HeaderPartitionKey: "cup"}
			require.NoError(t, b.PublishMessages(t.Context(), msg))
		}
		synctest.Wait()
		require.Equal(t, 1, strings.Count(log.String(), "leat: key parked"), log.String())
		require.Contains(t, log.String(), "key=cup message_id=bad")
		require.Equal(t, bus.Degraded, b.Health()[0].State)
		require.Contains(t, b.Health()[0].Degraded["parked"], "1 poisoned ones wait until those are replayed or dropped: leat poison ls --group shop.ledger")

		queue := b.Transport().PoisonQueue("shop.ledger")
		all, err := queue.List(t.Context(), "", 10)
		require.NoError(t, err)
		_, err = queue.Drop(t.Context(), all[0].ID)
		require.NoError(t, err)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, bus.Running, b.Health()[0].State)
	})
}
