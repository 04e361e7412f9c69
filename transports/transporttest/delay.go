package transporttest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testDelay tests promise 4.
func testDelay(t *testing.T, h Harness) {
	const delay = 400 * time.Millisecond

	t.Run("others pass meanwhile, other groups see nothing of it", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipWithoutDelay(t, transport)
		topic := w.topic("order.paid.v1")
		ledger := w.subscribe(transport, w.subscription("ledger", topic))
		mail := w.subscribe(transport, w.subscription("mail", topic))
		w.untilTelling(delay, func(delay time.Duration) (attemptCounted bool) {
			w.publish(transport, topic, "late")
			d := w.next(ledger)
			began := time.Now()
			require.NoError(t, d.Settler.Redeliver(delay))
			w.publish(transport, topic, "next")
			for range 2 {
				d = w.next(ledger)
				if driver.MessageID(d.Message) == "late" {
					require.Equal(t, 2, d.Attempt)
					require.GreaterOrEqual(t, time.Since(began), delay, "it came early")
				}
				attemptCounted = driver.MessageID(d.Message) == "late" // it was the second
				w.ack(d)
			}
			require.ElementsMatch(t, []string{"late", "next"}, w.collect(mail, 2)) // it has no order
			return attemptCounted
		})
		w.nothing(mail, delay)
	})

	t.Run("a time to deliver at that can't be read is refused", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipWithoutDelay(t, transport)
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(transport, w.subscription("ledger", topic))
		for _, at := range []string{"tomorrow", "2026-13-01T00:00:00Z", "\x00", "9999999999999999"} {
			msg := newMessage(topic, "at "+at)
			msg.Metadata[driver.HeaderDeliverAt] = at
			require.ErrorContains(t, transport.Publish(w.ctx, topic, newMessage(topic, "before"), msg), driver.HeaderDeliverAt)
		}
		w.publish(transport, topic, "good")
		require.Equal(t, []string{"good"}, w.collect(receiver, 1), "none of the others was published")
	})

	t.Run("short ones overtake long ones", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipWithoutDelay(t, transport)
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(transport, w.subscription("ledger", topic))
		w.untilTelling(1500*time.Millisecond, func(long time.Duration) (attemptCounted bool) {
			w.publish(transport, topic, "long", "short")
			for range 2 {
				d := w.next(receiver)
				wait := 200 * time.Millisecond
				if driver.MessageID(d.Message) == "long" {
					wait = long
				}
				require.NoError(t, d.Settler.GiveBack(wait))
			}
			return w.collect(receiver, 2)[0] == "short"
		})
	})

	t.Run("publishing with a delay", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipWithoutDelay(t, transport)
		topic := w.topic("order.paid.v1")
		ledger := w.subscribe(transport, w.subscription("ledger", topic))
		mail := w.subscribe(transport, w.subscription("mail", topic))
		due := time.Now().Add(delay)
		msg := newMessage(topic, "m")
		msg.Metadata[driver.HeaderDeliverAt] = due.UTC().Format(time.RFC3339Nano)
		require.NoError(t, transport.Publish(w.ctx, topic, msg))
		for _, receiver := range []driver.Receiver{ledger, mail} {
			d := w.next(receiver)
			require.False(t, time.Now().Before(due), "it came early")
			require.Equal(t, 1, d.Attempt)
			w.ack(d)
		}
	})

	t.Run("a delay outlives its process", func(t *testing.T) {
		w := newWorld(t, h)
		first := h.Open(t)
		defer func() { _ = first.Close(w.ctx) }()
		skipUnlessDurable(t, first)
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(first, w.subscription("ledger", topic))
		w.publish(first, topic, "m")
		began := time.Now()
		require.NoError(t, w.next(receiver).Settler.Redeliver(time.Second))
		require.NoError(t, first.Close(w.ctx))

		second := w.open()
		d := w.next(w.subscribe(second, w.subscription("ledger", topic)))
		require.GreaterOrEqual(t, time.Since(began), time.Second)
		require.Equal(t, 2, d.Attempt)
		w.ack(d)
	})

	t.Run("a delay outlives a restart of the message system", func(t *testing.T) {
		if h.Restart == nil {
			t.Skip("nothing to restart")
		}
		w, transport, topic, receiver := newLedger(t, h)
		w.publish(transport, topic, "m")
		require.NoError(t, w.next(receiver).Settler.Redeliver(time.Second))
		h.Restart(t)
		d := w.next(receiver)
		require.Equal(t, "m", driver.MessageID(d.Message))
		require.Equal(t, 2, d.Attempt)
		w.ack(d)
	})
}

func skipWithoutDelay(t *testing.T, transport driver.Transport) {
	if !transport.Capabilities().Delay {
		t.Skip("this transport holds delayed messages in its process, and says so")
	}
}

func skipUnlessDurable(t *testing.T, transport driver.Transport) {
	if !transport.Capabilities().Durable {
		t.Skip("this transport is not durable, and says so")
	}
}

// untilTelling runs a test with a delay, and again with longer ones: on a busy machine, a short delay may end before the test
// has done what the delay should outlast.
func (w *world) untilTelling(delay time.Duration, try func(delay time.Duration) (attemptCounted bool)) {
	w.Helper()
	for range 4 {
		if try(delay) {
			return
		}
		delay *= 3
	}
	w.Fatalf("nothing passed what waited, not even for %s", delay/3)
}
