package bus_test

import (
	"bytes"
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

func TestSetPaused_takesNoMessageUntilResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		b := newBus(t, bus.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		var handled atomic.Int32
		release := make(chan struct{})
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			<-release
			handled.Add(1)
			return nil
		}, concurrency(2))
		handle(t, b, "mail", ok)
		require.NoError(t, b.SetPaused("shop.ledger", true), "before Run")
		run(t, b)
		publish(t, b, "1", "2", "3")
		synctest.Wait()
		require.Zero(t, b.Stats().Groups["ledger"].InFlight)
		require.EqualValues(t, 3, b.Stats().Groups["mail"].Handled, "other groups continue")
		require.Contains(t, b.Health()[0].Degraded["operator"], "paused by an operator since")
		require.Equal(t, bus.Degraded, b.Health()[0].State)
		require.Equal(t, bus.Running, b.Health()[1].State)

		require.NoError(t, b.SetPaused("shop.ledger", false))
		synctest.Wait()
		require.EqualValues(t, 2, b.Stats().Groups["ledger"].InFlight)
		require.NoError(t, b.SetPaused("shop.ledger", true))
		time.Sleep(time.Hour)
		close(release)
		synctest.Wait()
		require.EqualValues(t, 2, handled.Load(), "what is in hand is finished, and nothing more is taken")
		require.NoError(t, b.SetPaused("shop.ledger", false))
		require.NoError(t, b.Idle(t.Context()))
		require.EqualValues(t, 3, handled.Load())
		require.Equal(t, bus.Running, b.Health()[0].State)
		require.Contains(t, log.String(), `msg="leat: group paused by an operator" group=shop.ledger`)
		require.Contains(t, log.String(), `msg="leat: group resumed by an operator" group=shop.ledger paused=1h0m0s`)
		require.ErrorIs(t, b.SetPaused("shop.leger", true), driver.ErrNotFound)
	})
}

// breakerStates records the states that observers are told.
type breakerStates struct{ states []bus.BreakerState }

func (*breakerStates) Published(context.Context, bus.Publication)                   {}
func (*breakerStates) Started(ctx context.Context, _ *bus.Delivery) context.Context { return ctx }
func (*breakerStates) Finished(context.Context, *bus.Delivery, bus.Observation)     {}

func (s *breakerStates) BreakerChanged(c bus.BreakerChange) { s.states = append(s.states, c.State) }

func TestSetPaused_isIndependentOfTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := &breakerStates{}
		b := newBus(t, bus.Config{Observers: []bus.Observer{seen}, Breaker: bus.BreakerPolicy{Messages: 2, Patience: -1}})
		var calls atomic.Int32
		fail := true
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			calls.Add(1)
			if fail {
				return errBroken
			}
			return nil
		})
		run(t, b)
		publish(t, b, "1", "2", "3")
		time.Sleep(time.Minute)
		require.NotEmpty(t, b.Health()[0].Degraded["circuit breaker"])
		require.NoError(t, b.SetPaused("shop.ledger", true))
		synctest.Wait()
		before, changes := calls.Load(), len(seen.states)
		time.Sleep(time.Hour)
		require.Equal(t, before, calls.Load(), "nothing is probed")
		require.Len(t, seen.states, changes)
		require.Equal(t, bus.BreakerHeld, seen.states[changes-1])
		fail = false
		require.NoError(t, b.SetPaused("shop.ledger", false))
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, bus.Running, b.Health()[0].State)
		require.Equal(t, bus.BreakerClosed, seen.states[len(seen.states)-1])
	})
}

func TestSetPaused_doesNotDelayTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", ok)
		stop := run(t, b)
		require.NoError(t, b.SetPaused("shop.ledger", true))
		publish(t, b, "1")
		synctest.Wait()
		began := time.Now()
		require.NoError(t, stop())
		require.Zero(t, time.Since(began))
		require.NoError(t, b.SetPaused("shop.ledger", false), "has no effect")
		require.NoError(t, b.Close(t.Context()))
	})
}
