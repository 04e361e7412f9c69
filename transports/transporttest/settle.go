package transporttest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testSettle tests promise 3.
func testSettle(t *testing.T, h Harness) {
	t.Run("acked does not come again", func(t *testing.T) {
		w := newWorld(t, h)
		first := w.open()
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(first, w.subscription("ledger", topic))
		w.publish(first, topic, "m")
		w.ack(w.next(receiver))
		w.nothing(receiver, 50*time.Millisecond)
		require.NoError(t, receiver.Close(w.ctx))
		second := w.another(first)
		w.nothing(w.subscribe(second, w.subscription("ledger", topic)), 150*time.Millisecond)
	})

	t.Run("a redelivery counts an attempt", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		w.publish(transport, topic, "m")
		for attempt := 1; attempt <= 4; attempt++ {
			d := w.next(receiver)
			require.Equal(t, "m", driver.MessageID(d.Message))
			require.Equal(t, attempt, d.Attempt)
			require.NoError(t, d.Settler.Redeliver(0))
		}
		w.ack(w.next(receiver))
	})

	t.Run("giving back costs nothing", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		w.publish(transport, topic, "m")
		require.NoError(t, w.next(receiver).Settler.Redeliver(0))
		for range 3 {
			d := w.next(receiver)
			require.Equal(t, 2, d.Attempt)
			require.NoError(t, d.Settler.GiveBack(0))
		}
		d := w.next(receiver)
		require.Equal(t, 2, d.Attempt)
		w.ack(d)
	})

	t.Run("a handler that changes its message changes it for nobody", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		topic := w.topic("order.paid.v1")
		ledger := w.subscribe(transport, w.subscription("ledger", topic))
		mail := w.subscribe(transport, w.subscription("mail", topic))
		w.publish(transport, topic, "m")
		d := w.next(ledger)
		d.Message.Metadata["changed"] = "yes"
		delete(d.Message.Metadata, driver.HeaderType)
		require.NoError(t, d.Settler.Redeliver(0))
		for _, receiver := range []driver.Receiver{ledger, mail} {
			d := w.next(receiver)
			require.NotContains(t, d.Message.Metadata, "changed")
			require.Equal(t, topic, d.Message.Metadata[driver.HeaderType])
			w.ack(d)
		}
	})

	t.Run("what a closed instance had not settled comes again, with its attempt counted", func(t *testing.T) {
		w := newWorld(t, h)
		first := h.Open(t)
		if !first.Capabilities().Durable {
			require.NoError(t, first.Close(w.ctx))
			t.Skip("not durable: what a process holds ends with it")
		}
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(first, driver.Subscription{Group: w.group("ledger"), Topics: []string{topic}, Concurrency: 4})
		w.publish(first, topic, "a", "b", "c")
		w.ack(w.next(receiver))
		lost := driver.MessageID(w.next(receiver).Message)
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond) // nobody will settle it
		defer cancel()
		_ = first.Close(ctx)

		second := w.open()
		receiver = w.subscribe(second, w.subscription("ledger", topic))
		attempts := map[string]int{}
		for range 2 {
			d := w.next(receiver)
			attempts[driver.MessageID(d.Message)] = d.Attempt
			w.ack(d)
		}
		require.Contains(t, attempts, lost)
		require.NotContains(t, attempts, "a")
		w.nothing(receiver, 100*time.Millisecond)
	})
}
