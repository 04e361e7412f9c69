package transporttest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testClose tests promise 10. goleak checks in the transport's TestMain that no goroutine is left.
func testClose(t *testing.T, h Harness) {
	t.Run("it wakes who waits, may be called twice, and is final", func(t *testing.T) {
		w := newWorld(t, h)
		transport := h.Open(t)
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(transport, w.subscription("ledger", topic))
		waiting := make(chan error, 1)
		go func() {
			_, err := receiver.Next(w.ctx)
			waiting <- err
		}()
		require.NoError(t, transport.Close(w.ctx))
		require.ErrorIs(t, <-waiting, driver.ErrClosed)
		require.NoError(t, transport.Close(w.ctx))

		require.ErrorIs(t, transport.Publish(w.ctx, topic, newMessage(topic, "m")), driver.ErrClosed)
		_, err := transport.Subscribe(w.ctx, w.subscription("ledger", topic))
		require.ErrorIs(t, err, driver.ErrClosed)
		_, err = receiver.Next(w.ctx)
		require.ErrorIs(t, err, driver.ErrClosed)
		require.NoError(t, receiver.Close(w.ctx))
	})

	t.Run("a closed feed hands out nothing, and its group goes on", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		topic := w.topic("order.paid.v1")
		first := w.subscribe(transport, w.subscription("ledger", topic))
		w.publish(transport, topic, "a")
		d := w.next(first)
		require.NoError(t, first.Close(w.ctx))
		require.NoError(t, first.Close(w.ctx))
		_, err := first.Next(w.ctx)
		require.ErrorIs(t, err, driver.ErrClosed)
		w.ack(d) // deliveries may still be settled

		second := w.subscribe(transport, w.subscription("ledger", topic))
		w.publish(transport, topic, "b")
		require.Equal(t, []string{"b"}, w.collect(second, 1))
	})

	t.Run("a feed that closes gives back what it has not handed out", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		topic := w.topic("order.paid.v1")
		sub := w.subscription("ledger", topic)
		sub.Concurrency = 20
		first := w.subscribe(transport, sub)
		w.publish(transport, topic, ids("m", 20)...)
		w.ack(w.next(first))
		require.NoError(t, first.Close(w.ctx))
		second := w.subscribe(transport, sub)
		for range 19 {
			d := w.next(second)
			require.Equal(t, 1, d.Attempt, "%s was never handed out before", driver.MessageID(d.Message))
			w.ack(d)
		}
	})

	t.Run("under load it loses nothing", func(t *testing.T) {
		w := newWorld(t, h)
		first := h.Open(t)
		if !first.Capabilities().Durable {
			require.NoError(t, first.Close(w.ctx))
			t.Skip("not durable: what waits in memory ends with it; the bus drains it first")
		}
		topic := w.topic("order.paid.v1")
		sub := w.subscription("ledger", topic)
		sub.Concurrency = 8
		receiver := w.subscribe(first, sub)
		published := ids("m", 300)
		w.publish(first, topic, published...)
		sheet := newIDCounter()
		stop := w.consume(receiver, 8, func(d *driver.Delivery) {
			sheet.add(driver.MessageID(d.Message))
			_ = d.Settler.Ack()
		})
		w.eventually("it is in the middle", func() bool { return sheet.len() >= 50 })
		stop()
		require.NoError(t, first.Close(w.ctx))

		second := w.open()
		w.consume(w.subscribe(second, sub), 8, func(d *driver.Delivery) {
			sheet.add(driver.MessageID(d.Message))
			w.ack(d)
		})
		w.eventually("the rest is handled", func() bool { return sheet.len() == len(published) })
		require.Equal(t, once(published), sheet.counts(), "an orderly close makes no duplicates")
	})

	t.Run("what is published meanwhile is safe, or an error says that it is not", func(t *testing.T) {
		w := newWorld(t, h)
		first := h.Open(t)
		if !first.Capabilities().Durable {
			require.NoError(t, first.Close(w.ctx))
			t.Skip("not durable: nothing is left to compare with")
		}
		topic := w.topic("order.paid.v1")
		sub := w.subscription("ledger", topic)
		require.NoError(t, w.subscribe(first, sub).Close(w.ctx))
		safe, refused := newIDCounter(), newIDCounter()
		var publishers sync.WaitGroup
		for p := range 8 {
			publishers.Go(func() {
				for i := 0; ; i++ {
					id := fmt.Sprintf("m-%d-%d", p, i)
					err := first.Publish(w.ctx, topic, newMessage(topic, id))
					if err == nil {
						safe.add(id)
						continue
					}
					refused.add(id)
					if !errors.Is(err, driver.ErrClosed) {
						t.Errorf("publishing %s while the transport closes: %v", id, err)
					}
					return
				}
			})
		}
		w.eventually("it is in the middle", func() bool { return safe.len() >= 100 })
		require.NoError(t, first.Close(w.ctx))
		publishers.Wait()

		arrived := newIDCounter()
		receiver := w.subscribe(w.open(), sub)
		stop := w.consume(receiver, 1, func(d *driver.Delivery) {
			arrived.add(driver.MessageID(d.Message))
			w.ack(d)
		})
		w.eventually("everything safe arrives", func() bool { return arrived.len() >= safe.len() })
		stop()
		w.nothing(receiver, 50*time.Millisecond)
		require.Equal(t, safe.counts(), arrived.counts(), "ErrClosed means that a message was not published; refused: %v", refused.all())
	})

	t.Run("next honours its context", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		receiver := w.subscribe(transport, w.subscription("ledger", w.topic("order.paid.v1")))
		ctx, cancel := context.WithTimeout(w.ctx, 50*time.Millisecond)
		defer cancel()
		_, err := receiver.Next(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
