package transporttest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testPark tests the other half of promise 7: the order behind a poisoned message.
func testPark(t *testing.T, h Harness) {
	t.Run("a poisoned message holds back its key and no other", func(t *testing.T) {
		w, transport, receiver := newParking(t, h)
		w.publishKeyed(transport, "a/1", "b/1", "a/2", "b/2", "/1")
		w.poison(receiver, "a/1")
		w.publishKeyed(transport, "a/3", "b/3", "/2")
		require.ElementsMatch(t, []string{"b/1", "b/2", "b/3", "/1", "/2"}, w.collect(receiver, 5), "others go on")
		w.nothing(receiver, 50*time.Millisecond)
		w.parked(transport, 2)
		w.parkedKeys(receiver, 1)

		// An operator replays it from another process, and it is delivered first.
		queue := w.another(transport).PoisonQueue(w.group("ledger"))
		w.replay(queue, w.listPoisoned(queue, 10)...)
		w.publishKeyed(transport, "a/4")
		require.Equal(t, []string{"a/1", "a/2", "a/3", "a/4"}, w.collect(receiver, 4))
		w.parked(transport, 0)
		w.parkedKeys(receiver, 0)

		w.publishKeyed(transport, "/3")
		w.poison(receiver, "/3")
		w.publishKeyed(transport, "/4")
		require.Equal(t, []string{"/4"}, w.collect(receiver, 1))
		w.parkedKeys(receiver, 0) // a message without a key holds back none
	})

	t.Run("the next poisoned message of the key holds back what is behind it", func(t *testing.T) {
		w, transport, receiver := newParking(t, h)
		w.publishKeyed(transport, "a/1", "a/2", "a/3", "a/4")
		queue := w.another(transport).PoisonQueue(w.group("ledger"))
		w.poison(receiver, "a/1")
		w.replay(queue, w.listPoisoned(queue, 10)...)
		w.poison(receiver, "a/1") // again
		w.nothing(receiver, 50*time.Millisecond)
		w.parked(transport, 3)
		w.replay(queue, w.listPoisoned(queue, 10)...)
		w.ack(w.nextIs(receiver, "a/1"))
		w.poison(receiver, "a/2")
		w.nothing(receiver, 50*time.Millisecond)
		w.parked(transport, 2)
		w.replay(queue, w.listPoisoned(queue, 10)...)
		require.Equal(t, []string{"a/2", "a/3", "a/4"}, w.collect(receiver, 3))
	})

	t.Run("a dropped message releases its key", func(t *testing.T) {
		w, transport, receiver := newParking(t, h)
		w.publishKeyed(transport, "a/1", "a/2", "a/3", "b/1")
		w.poison(receiver, "a/1")
		w.poison(receiver, "b/1")
		w.publishKeyed(transport, "b/2")
		queue := w.another(transport).PoisonQueue(w.group("ledger"))
		poisoned := w.listPoisoned(queue, 10)
		n, err := queue.Drop(w.ctx, poisoned[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, []string{"a/2", "a/3"}, w.collect(receiver, 2))
		w.nothing(receiver, 50*time.Millisecond)
		w.replay(queue, poisoned[1])
		require.Equal(t, []string{"b/1", "b/2"}, w.collect(receiver, 2))
	})

	t.Run("a message that waits for its next try is not passed by the parked", func(t *testing.T) {
		w, transport, receiver := newParking(t, h)
		w.publishKeyed(transport, "a/1", "a/2", "a/3")
		queue := w.another(transport).PoisonQueue(w.group("ledger"))
		w.poison(receiver, "a/1")
		w.replay(queue, w.listPoisoned(queue, 10)...)
		require.NoError(t, w.nextIs(receiver, "a/1").Settler.Redeliver(200*time.Millisecond))
		d := w.nextIs(receiver, "a/1")
		require.Equal(t, 2, d.Attempt)
		w.ack(d)
		require.Equal(t, []string{"a/2", "a/3"}, w.collect(receiver, 2))
	})

	t.Run("a strictly ordered group stops", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipUnlessParks(t, transport)
		if !transport.Capabilities().Strict {
			t.Skip("this transport has no strict order, and says so")
		}
		sub := w.parking(1)
		sub.Order = driver.OrderedStrictly
		receiver := w.subscribe(transport, sub)
		w.publishKeyed(transport, "a/1", "b/1", "/1")
		w.poison(receiver, "a/1")
		w.nothing(receiver, 50*time.Millisecond)
		w.parked(transport, 2)
		w.parkedKeys(receiver, 1)
		queue := w.another(transport).PoisonQueue(w.group("ledger"))
		w.replay(queue, w.listPoisoned(queue, 10)...)
		w.publishKeyed(transport, "a/2")
		require.Equal(t, []string{"a/1", "b/1", "/1", "a/2"}, w.collect(receiver, 4))
	})

	t.Run("the publisher's process is told of each message that is parked", func(t *testing.T) {
		w, transport, receiver := newParking(t, h)
		notifier, ok := receiver.(driver.ParkNotifier)
		if !ok {
			t.Skip("the transport parks outside of the publisher's process")
		}
		attemptCounted := make(chan string, 10)
		notifier.OnPark(func(msg *message.Message) { attemptCounted <- driver.MessageID(msg) })
		w.publishKeyed(transport, "a/1", "a/2", "b/1")
		w.poison(receiver, "a/1")
		w.publishKeyed(transport, "a/3")
		require.Equal(t, []string{"b/1"}, w.collect(receiver, 1))
		require.Equal(t, "a/2", <-attemptCounted)
		require.Equal(t, "a/3", <-attemptCounted)
		require.Empty(t, attemptCounted, "neither the poisoned message nor those of other keys")
	})

	t.Run("it outlives the consumers", func(t *testing.T) {
		w := newWorld(t, h)
		first := w.open()
		skipUnlessParks(t, first)
		receiver := w.subscribe(first, w.parking(4))
		w.publishKeyed(first, "a/1", "a/2")
		w.poison(receiver, "a/1")
		require.NoError(t, receiver.Close(w.ctx))
		if first.Capabilities().Durable {
			require.NoError(t, first.Close(w.ctx))
		}
		second := w.another(first)
		receiver = w.subscribe(second, w.parking(4))
		w.publishKeyed(second, "a/3", "b/1")
		require.Equal(t, []string{"b/1"}, w.collect(receiver, 1))
		w.nothing(receiver, 50*time.Millisecond)
		w.parked(second, 2)
		queue := second.PoisonQueue(w.group("ledger"))
		w.replay(queue, w.listPoisoned(queue, 10)...)
		require.Equal(t, []string{"a/1", "a/2", "a/3"}, w.collect(receiver, 3))
	})

	t.Run("a group that does not park any more lets everything go", func(t *testing.T) {
		w, transport, receiver := newParking(t, h)
		w.publishKeyed(transport, "a/1", "a/2", "a/3")
		w.poison(receiver, "a/1")
		w.nothing(receiver, 50*time.Millisecond)
		w.parked(transport, 2)
		require.NoError(t, receiver.Close(w.ctx))
		receiver = w.subscribe(w.another(transport), w.byKey(4))
		w.publishKeyed(transport, "a/4")
		require.Equal(t, []string{"a/2", "a/3", "a/4"}, w.collect(receiver, 3))
	})

	t.Run("many keys, several of them poisoned, many consumers", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipUnlessParks(t, transport)
		const keys, each, bad = 12, 15, 3
		receivers := []driver.Receiver{w.subscribe(transport, w.parking(4)), w.subscribe(w.another(transport), w.parking(4))}
		overlaps, poisoned := newKeyOverlaps(), newIDCounter()
		for _, receiver := range receivers {
			w.consume(receiver, 4, func(d *driver.Delivery) {
				id := driver.MessageID(d.Message)
				for k := range bad {
					if id == fmt.Sprintf("%d/%03d", k, 2*k) && poisoned.add(id) == 1 {
						if err := d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)); err != nil {
							w.Errorf("poison %s: %v", id, err)
						}
						return
					}
				}
				overlaps.enter(w, d)
				overlaps.leave(d)
				w.ack(d)
			})
		}
		waiting := 0
		for k := range bad {
			waiting += each - 2*k - 1
		}
		for i := range each {
			for k := range keys {
				w.publishKeyed(transport, fmt.Sprintf("%d/%03d", k, i))
			}
		}
		w.eventually("the others arrive", func() bool { return overlaps.total() == keys*each-bad-waiting })
		w.parked(transport, waiting)
		queue := w.another(transport).PoisonQueue(w.group("ledger"))
		w.eventually("the bad ones are poisoned", func() bool { return len(w.listPoisoned(queue, 2)) == bad })
		for _, p := range w.listPoisoned(queue, 2) {
			w.replay(queue, p)
		}
		w.eventually("the parked arrive", func() bool { return overlaps.total() == keys*each })
		overlaps.requireOrder(t, each)
	})

	t.Run("a group without an order can't park", func(t *testing.T) {
		w := newWorld(t, h)
		sub := w.parking(1)
		sub.Order = driver.Unordered
		_, err := w.open().Subscribe(w.ctx, sub)
		require.ErrorContains(t, err, "not ordered")
	})
}

func skipUnlessParks(t *testing.T, transport driver.Transport) {
	if !transport.Capabilities().Park {
		t.Skip("this transport does not park, and says so")
	}
}

// newParking returns a world with an open transport and a receiver of a group that parks. It skips the test if the transport does not park.
func newParking(t *testing.T, h Harness) (*world, driver.Transport, driver.Receiver) {
	t.Helper()
	w := newWorld(t, h)
	transport := w.open()
	skipUnlessParks(t, transport)
	return w, transport, w.subscribe(transport, w.parking(4))
}

func (w *world) parking(concurrency int) driver.Subscription {
	s := w.byKey(concurrency)
	s.Park = true
	return s
}

// publishKeyed publishes messages. The key of each is the part before the slash.
func (w *world) publishKeyed(transport driver.Transport, ids ...string) {
	w.Helper()
	topic := w.topic("order.paid.v1")
	for _, id := range ids {
		msg := newMessage(topic, id)
		if key, _, _ := strings.Cut(id, "/"); key != "" {
			msg = withKey(msg, key)
		}
		require.NoError(w, transport.Publish(w.ctx, topic, msg))
	}
}

func (w *world) nextIs(receiver driver.Receiver, id string) *driver.Delivery {
	w.Helper()
	d := w.next(receiver)
	require.Equal(w, id, driver.MessageID(d.Message))
	return d
}

// poison poisons the message with this id, and gives back those that are delivered before it.
func (w *world) poison(receiver driver.Receiver, id string) {
	w.Helper()
	var others []*driver.Delivery
	d := w.next(receiver)
	for ; driver.MessageID(d.Message) != id; d = w.next(receiver) {
		others = append(others, d)
	}
	require.NoError(w, d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)))
	for _, d := range others {
		require.NoError(w, d.Settler.GiveBack(0))
	}
}

func (w *world) replay(queue driver.PoisonQueue, list ...driver.PoisonedMessage) {
	w.Helper()
	ids := make([]string, len(list))
	for i, p := range list {
		ids[i] = p.ID
	}
	n, err := queue.Replay(w.ctx, ids...)
	require.NoError(w, err)
	require.Equal(w, len(ids), n)
}

// parkedKeys blocks until so many keys of the receiver's group are held back.
func (w *world) parkedKeys(receiver driver.Receiver, want int) {
	w.Helper()
	counter, ok := receiver.(driver.ParkedKeyCounter)
	require.True(w, ok, "the bus reports parked keys by it")
	w.eventually(fmt.Sprintf("%d keys are held back", want), func() bool {
		n, err := counter.ParkedKeys(w.ctx)
		require.NoError(w, err)
		return n == want
	})
}

// parked blocks until n messages of the group are reported as parked.
func (w *world) parked(transport driver.Transport, want int) {
	w.Helper()
	queue := transport.PoisonQueue(w.group("ledger"))
	w.eventually(fmt.Sprintf("%d are shown behind poisoned messages", want), func() bool {
		n := 0
		for _, p := range w.listPoisoned(queue, 100) {
			if p.Parked == driver.Unknown {
				return true
			}
			n += p.Parked
		}
		return n == want
	})
	inspector, ok := transport.(driver.Inspector)
	if !ok {
		return
	}
	w.eventually(fmt.Sprintf("%d are shown as parked", want), func() bool {
		groups, err := inspector.Groups(w.ctx)
		require.NoError(w, err)
		for _, g := range groups {
			if g.Name == w.group("ledger") {
				return g.Parked == want || g.Parked == driver.Unknown
			}
		}
		return false
	})
}
