package transporttest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testDurability tests promise 6. Transports that are not durable keep a group as long as they are open.
func testDurability(t *testing.T, h Harness) {
	t.Run("messages wait while nobody consumes", func(t *testing.T) {
		w := newWorld(t, h)
		first := h.Open(t)
		durable := first.Capabilities().Durable
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(first, w.subscription("ledger", topic))
		w.publish(first, topic, "before")
		require.Equal(t, []string{"before"}, w.collect(receiver, 1))
		require.NoError(t, receiver.Close(w.ctx))
		publisher := first
		if durable {
			require.NoError(t, first.Close(w.ctx))
			publisher = w.open()
		} else {
			t.Cleanup(func() { require.NoError(t, first.Close(w.ctx)) })
		}
		w.publish(publisher, topic, "a", "b", "c")
		consumer := w.another(publisher)
		require.Equal(t, []string{"a", "b", "c"}, w.collect(w.subscribe(consumer, w.subscription("ledger", topic)), 3))
	})

	t.Run("a group is there as soon as Subscribe returns", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		w.publish(transport, topic, "m") // before the first Next
		require.Equal(t, []string{"m"}, w.collect(receiver, 1))
	})

	t.Run("many restarts of a consumer lose nothing", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		topic := w.topic("order.paid.v1")
		w.subscribe(transport, w.subscription("ledger", topic))
		published := ids("m", 60)
		w.publish(transport, topic, published...)
		var got []string
		for range 6 {
			consumer := w.another(transport)
			receiver := w.subscribe(consumer, driver.Subscription{Group: w.group("ledger"), Topics: []string{topic}, Known: []string{topic}, Concurrency: 1})
			got = append(got, w.collect(receiver, 10)...)
			require.NoError(t, receiver.Close(w.ctx))
		}
		require.ElementsMatch(t, published, got)
	})

	t.Run("a group that would be lost counts its backlog", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		counter, ok := receiver.(driver.BacklogCounter)
		if !ok {
			require.True(t, transport.Capabilities().Durable, "a bus that stops needs a BacklogCounter of a transport that is not durable")
			t.Skip("the transport keeps the backlog")
		}
		backlog := func() [2]int {
			now, later := counter.Backlog()
			return [2]int{now, later}
		}
		require.Equal(t, [2]int{0, 0}, backlog())
		w.publish(transport, topic, "a", "b")
		require.Equal(t, [2]int{2, 0}, backlog())
		d := w.next(receiver)
		require.Equal(t, [2]int{2, 0}, backlog(), "what is being handled may fail, or publish more")
		if transport.Capabilities().Delay {
			require.NoError(t, d.Settler.Redeliver(time.Hour))
			require.Equal(t, [2]int{1, 1}, backlog())
		} else {
			w.ack(d)
		}
		w.ack(w.next(receiver))
		now, _ := counter.Backlog()
		require.Zero(t, now)
	})
}
