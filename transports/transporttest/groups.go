package transporttest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testGroups tests promise 1.
func testGroups(t *testing.T, h Harness) {
	t.Run("two groups get all, two consumers of a group share", func(t *testing.T) {
		w := newWorld(t, h)
		first := w.open()
		second := w.another(first)
		topic := w.topic("order.paid.v1")
		published := ids("m", 200)
		sheets := map[string]*idCounter{"ledger": newIDCounter(), "mail": newIDCounter()}
		for group, sheet := range sheets {
			for _, transport := range []driver.Transport{first, second} {
				receiver := w.subscribe(transport, w.subscription(group, topic))
				w.consume(receiver, 2, func(d *driver.Delivery) {
					sheet.add(driver.MessageID(d.Message))
					w.ack(d)
				})
			}
		}
		w.publish(first, topic, published...)
		for group, sheet := range sheets {
			w.eventually(group+" gets all", func() bool { return sheet.len() == len(published) })
		}
		for group, sheet := range sheets {
			require.Equal(t, once(published), sheet.counts(), group)
		}
	})

	t.Run("a delivery says where it comes from", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		before := time.Now().Add(-time.Minute)
		w.publish(transport, topic, "m")
		d := w.next(receiver)
		require.Equal(t, topic, d.Topic)
		require.Equal(t, w.group("ledger"), d.Group)
		require.Equal(t, 1, d.Attempt)
		if !d.FirstSeen.IsZero() {
			require.WithinRange(t, d.FirstSeen, before, time.Now().Add(time.Minute))
		}
		w.ack(d)
	})

	t.Run("patterns", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		if !transport.Capabilities().Patterns {
			t.Skip("this transport has no patterns, and says so")
		}
		one := w.subscribe(transport, w.subscription("one", w.topic("order.paid.*")))
		rest := w.subscribe(transport, w.subscription("rest", w.topic("order.>")))
		both := w.subscribe(transport, w.subscription("both", w.topic("order.>"), w.topic("order.paid.v1"), w.topic("*.paid.v1")))
		w.publish(transport, w.topic("order.paid.v1"), "a")
		w.publish(transport, w.topic("order.paid.v2"), "b")
		w.publish(transport, w.topic("order.paid.late.v1"), "c")
		w.publish(transport, w.topic("order.placed.v1"), "d")
		require.ElementsMatch(t, []string{"a", "b"}, w.collect(one, 2))
		require.ElementsMatch(t, []string{"a", "b", "c", "d"}, w.collect(rest, 4))
		require.ElementsMatch(t, []string{"a", "b", "c", "d"}, w.collect(both, 4), "a message that several patterns take comes once")
		for _, receiver := range []driver.Receiver{one, rest, both} {
			w.nothing(receiver, 50*time.Millisecond)
		}
	})
}
