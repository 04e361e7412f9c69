package transporttest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testDurability is promise 6. Transports that are not durable keep a group as long as they are open.
func testDurability(t *testing.T, h Harness) {
	t.Run("messages wait while nobody consumes", func(t *testing.T) {
		w := newWorld(t, h)
		first := h.Open(t)
		durable := first.Capabilities().Durable
		topic := w.topic("order.paid.v1")
		feed := w.subscribe(first, w.subscription("ledger", topic))
		w.publish(first, topic, "before")
		require.Equal(t, []string{"before"}, w.collect(feed, 1))
		require.NoError(t, feed.Close(w.ctx))
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
		w := newWorld(t, h)
		transport := w.open()
		topic := w.topic("order.paid.v1")
		feed := w.subscribe(transport, w.subscription("ledger", topic))
		w.publish(transport, topic, "m") // before the first Next
		require.Equal(t, []string{"m"}, w.collect(feed, 1))
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
			feed := w.subscribe(consumer, driver.Subscription{Group: w.group("ledger"), Topics: []string{topic}, Known: []string{topic}, Concurrency: 1})
			got = append(got, w.collect(feed, 10)...)
			require.NoError(t, feed.Close(w.ctx))
		}
		require.ElementsMatch(t, published, got)
	})
}
