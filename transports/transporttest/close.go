package transporttest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testClose is promise 10. That no goroutine is left is goleak's to say, in the transport's TestMain.
func testClose(t *testing.T, h Harness) {
	t.Run("it wakes who waits, may be called twice, and is final", func(t *testing.T) {
		w := newWorld(t, h)
		transport := h.Open(t)
		topic := w.topic("order.paid.v1")
		feed := w.subscribe(transport, w.subscription("ledger", topic))
		waiting := make(chan error, 1)
		go func() {
			_, err := feed.Next(w.ctx)
			waiting <- err
		}()
		require.NoError(t, transport.Close(w.ctx))
		require.ErrorIs(t, <-waiting, driver.ErrClosed)
		require.NoError(t, transport.Close(w.ctx))

		require.ErrorIs(t, transport.Publish(w.ctx, topic, newMessage(topic, "m")), driver.ErrClosed)
		_, err := transport.Subscribe(w.ctx, w.subscription("ledger", topic))
		require.ErrorIs(t, err, driver.ErrClosed)
		_, err = feed.Next(w.ctx)
		require.ErrorIs(t, err, driver.ErrClosed)
		require.NoError(t, feed.Close(w.ctx))
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
		w.ack(d) // what is out may still be settled

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
		feed := w.subscribe(first, sub)
		published := ids("m", 300)
		w.publish(first, topic, published...)
		sheet := newTallySheet()
		stop := w.consume(feed, 8, func(d *driver.Delivery) {
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

	t.Run("next honours its context", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		feed := w.subscribe(transport, w.subscription("ledger", w.topic("order.paid.v1")))
		ctx, cancel := context.WithTimeout(w.ctx, 50*time.Millisecond)
		defer cancel()
		_, err := feed.Next(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
