package bus_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
)

func TestStats_countOwnMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		release := make(chan struct{})
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			<-release
			return nil
		})
		handle(t, b, "audit", ok, topics("order.>"))
		run(t, b)
		require.NoError(t, b.Idle(t.Context()), "there is nothing to wait for")

		publish(t, b, "a", "b")
		require.NoError(t, b.Publish(t.Context(), placed{}))
		synctest.Wait()
		s := b.Stats()
		require.EqualValues(t, 3, s.Published)
		require.EqualValues(t, 2, s.Groups["ledger"].Outstanding())
		require.EqualValues(t, 2, s.Groups["ledger"].InFlight)
		require.EqualValues(t, 3, s.Groups["audit"].Handled)
		require.Zero(t, s.Groups["audit"].Outstanding())

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, b.Idle(ctx), context.DeadlineExceeded)
		close(release)
		require.NoError(t, b.Idle(t.Context()))
		require.Zero(t, b.Stats().Groups["ledger"].Outstanding())
	})
}

// A bus counts how long deliveries take once somebody has asked, without the waits between tries.
func TestDurations_countFromTheFirstCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
			time.Sleep(time.Minute)
			bus.DeliveryFrom(ctx).AddWaited(59 * time.Second)
			return nil
		})
		run(t, b)
		publish(t, b, "before")
		require.NoError(t, b.Idle(t.Context()))
		require.Empty(t, b.Durations()["ledger"])

		publish(t, b, "a", "b")
		require.NoError(t, b.Idle(t.Context()))
		all := b.Durations()["ledger"]
		require.Len(t, all, 1)
		require.EqualValues(t, 2, all[0].Count)
		require.InDelta(t, time.Second, all[0].Max, float64(time.Second/8))
		require.Contains(t, b.Durations(), "ledger")
	})
}

func TestIdle_waitsForTheWholeCascade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", func(ctx context.Context, _ *message.Message) error {
			time.Sleep(time.Minute)
			return b.Publish(ctx, placed{}, bus.WithDelay(time.Hour))
		})
		handle(t, b, "audit", ok, topics("order.placed.v1"))
		run(t, b)
		publish(t, b, "a")
		require.NoError(t, b.Idle(t.Context()))
		require.EqualValues(t, 1, b.Stats().Groups["audit"].Handled)
	})
}

func TestStats_foreignMessagesAreNotExpected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", ok)
		run(t, b)
		require.NoError(t, b.Transport().Publish(t.Context(), paidTopic, newMessage(paidTopic, "foreign")))
		synctest.Wait()
		s := b.Stats().Groups["ledger"]
		require.EqualValues(t, 1, s.Handled)
		require.Zero(t, s.Expected)
		require.Zero(t, s.Settled)
		publish(t, b, "own")
		require.NoError(t, b.Idle(t.Context()))
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Settled)
	})
}

func TestHealth_showsGroupStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		state := func() bus.State { return b.Health()[0].State }
		reason := errBroken
		release := make(chan struct{})
		handle(t, b, "ledger", func(ctx context.Context, msg *message.Message) error {
			d := bus.DeliveryFrom(ctx)
			d.Degraded("poison queue", reason)
			if msg.UUID == "last" {
				<-release
			}
			return nil
		})
		handle(t, b, "other", ok)
		require.Equal(t, bus.Waiting, state())
		stop := run(t, b)
		require.Equal(t, bus.Running, state())

		publish(t, b, "a")
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, bus.Health{
			Group: "shop.ledger", State: bus.Degraded, Degraded: map[string]string{"poison queue": "the handler is broken"},
		}, b.Health()[0])
		require.Equal(t, bus.Health{Group: "shop.other", State: bus.Running}, b.Health()[1], "each group for itself")

		reason = nil
		publish(t, b, "b", "last")
		synctest.Wait()
		require.Equal(t, bus.Running, state(), "it works again")
		require.Empty(t, b.Health()[0].Degraded)

		go func() { _ = stop() }()
		synctest.Wait()
		require.Equal(t, bus.Draining, state())
		close(release)
		require.NoError(t, stop())
		require.Equal(t, bus.Stopped, state())
	})
}

func TestHealth_showsStuckHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		release := make(chan struct{})
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			<-release
			return nil
		}, func(h *bus.Handler) { h.Timeout = 30 * time.Second })
		run(t, b)
		publish(t, b, "message-7")
		time.Sleep(80 * time.Second)
		require.Equal(t, bus.Running, b.Health()[0].State, "its timeout and a minute")
		time.Sleep(20 * time.Second)
		require.Equal(t, bus.Degraded, b.Health()[0].State)
		require.Contains(t, b.Health()[0].Degraded["handler"], "message-7 has been in the handler for 1m40s")
		close(release)
		synctest.Wait()
		require.Equal(t, bus.Running, b.Health()[0].State)
	})
}

func TestHealth_isConcurrent(t *testing.T) {
	b := newBus(t, bus.Config{})
	handle(t, b, "ledger", ok)
	run(t, b)
	for range 200 {
		publish(t, b, "a")
		_ = b.Health()
		_ = b.Stats()
	}
	require.NoError(t, b.Idle(t.Context()))
}
