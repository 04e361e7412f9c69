package transporttest

import (
	"context"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testPublish tests promise 2.
func testPublish(t *testing.T, h Harness) {
	t.Run("what was accepted is there, for another instance too", func(t *testing.T) {
		w := newWorld(t, h)
		first := w.open()
		topic := w.topic("order.paid.v1")
		w.subscribe(first, w.subscription("ledger", topic))
		msgs := make([]*message.Message, 300)
		published := ids("m", len(msgs))
		for i, id := range published {
			msgs[i] = newMessage(topic, id)
		}
		require.NoError(t, first.Publish(w.ctx, topic, msgs...))

		second := w.another(first)
		receiver := w.subscribe(second, w.subscription("ledger", topic))
		require.ElementsMatch(t, published, w.collect(receiver, len(published)))
	})

	t.Run("no message is nothing", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		w.subscribe(transport, w.subscription("ledger", w.topic("order.paid.v1")))
		require.NoError(t, transport.Publish(w.ctx, w.topic("order.paid.v1")))
	})

	t.Run("a context that is over publishes nothing", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		ctx, cancel := context.WithCancel(w.ctx)
		cancel()
		require.ErrorIs(t, transport.Publish(ctx, topic, newMessage(topic, "m")), context.Canceled)
		w.nothing(receiver, 100*time.Millisecond)
	})

	t.Run("a message that reaches no group is reported", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		nowhere := w.topic("order.payed.v1")
		err := transport.Publish(w.ctx, nowhere, newMessage(nowhere, "a"), newMessage(nowhere, "b"))
		require.ErrorIs(t, err, driver.ErrUnroutable)
		var unroutable *driver.UnroutableError
		require.ErrorAs(t, err, &unroutable)
		require.Equal(t, []string{nowhere, nowhere}, unroutable.Topics)
		w.publish(transport, topic, "c") // and the transport works on
		require.Equal(t, []string{"c"}, w.collect(receiver, 1))
	})

	t.Run("from many goroutines at once", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		sheet := newIDCounter()
		w.consume(receiver, 1, func(d *driver.Delivery) {
			sheet.add(driver.MessageID(d.Message))
			w.ack(d)
		})
		published := ids("m", 400)
		errs := make(chan error, 8)
		for part := range 8 {
			go func() {
				var err error
				for _, id := range published[part*50 : part*50+50] {
					if err == nil {
						err = transport.Publish(w.ctx, topic, newMessage(topic, id))
					}
				}
				errs <- err
			}()
		}
		for range 8 {
			require.NoError(t, <-errs)
		}
		w.eventually("all arrive", func() bool { return sheet.len() == len(published) })
		require.Equal(t, once(published), sheet.counts())
	})
}
