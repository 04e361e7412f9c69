package transporttest

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testOrder tests promise 7.
func testOrder(t *testing.T, h Harness) {
	t.Run("concurrency 1 keeps the order of arrival", func(t *testing.T) {
		w, transport, topic, receiver := newLedger(t, h)
		published := ids("m", 200)
		w.publish(transport, topic, published...)
		require.Equal(t, published, w.collect(receiver, len(published)))
	})

	t.Run("by key, with many consumers", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipUnlessByKey(t, transport)
		const keys, each = 20, 20
		receiver := w.subscribe(transport, w.byKey(8))
		overlaps := newKeyOverlaps()
		w.consume(receiver, 8, func(d *driver.Delivery) {
			overlaps.enter(w, d)
			runtime.Gosched()
			overlaps.leave(d)
			w.ack(d)
		})
		topic := w.topic("order.paid.v1")
		for i := range each {
			for k := range keys {
				key := fmt.Sprintf("key-%d", k)
				require.NoError(t, transport.Publish(w.ctx, topic, withKey(newMessage(topic, fmt.Sprintf("%s/%03d", key, i)), key)))
			}
		}
		w.eventually("all arrive", func() bool { return overlaps.total() == keys*each })
		overlaps.requireOrder(t, each)
	})

	t.Run("a message that waits holds back its key and no other", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipUnlessByKey(t, transport)
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(transport, w.byKey(4))
		var wait atomic.Int64 // how long a/1 waits after its first delivery
		sheet := newIDCounter()
		w.consume(receiver, 4, func(d *driver.Delivery) {
			id := driver.MessageID(d.Message)
			if id == "a/1" && d.Attempt == 1 {
				if err := d.Settler.Redeliver(time.Duration(wait.Load())); err != nil {
					w.Errorf("redeliver %s: %v", id, err)
				}
				return
			}
			sheet.add(id)
			w.ack(d)
		})
		w.untilTelling(time.Second, func(delay time.Duration) (attemptCounted bool) {
			wait.Store(int64(delay))
			before := len(sheet.all())
			for _, id := range []string{"a/1", "a/2", "b/1", "a/3", "b/2"} {
				require.NoError(t, transport.Publish(w.ctx, topic, withKey(newMessage(topic, id), id[:1])))
			}
			w.eventually("all arrive", func() bool { return len(sheet.all()) == before+5 })
			order := sheet.all()[before:]
			isA := func(id string) bool { return id[0] == 'a' }
			require.Equal(t, []string{"a/1", "a/2", "a/3"}, slices.DeleteFunc(slices.Clone(order), func(id string) bool { return !isA(id) }))
			require.Equal(t, []string{"b/1", "b/2"}, slices.DeleteFunc(slices.Clone(order), isA))
			return isA(order[2])
		})
	})

	t.Run("a poisoned message lets its key go on", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipUnlessByKey(t, transport)
		topic := w.topic("order.paid.v1")
		receiver := w.subscribe(transport, w.byKey(2))
		for _, id := range []string{"a/1", "a/2"} {
			require.NoError(t, transport.Publish(w.ctx, topic, withKey(newMessage(topic, id), "a")))
		}
		d := w.next(receiver)
		require.Equal(t, "a/1", driver.MessageID(d.Message))
		require.NoError(t, d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)))
		require.Equal(t, []string{"a/2"}, w.collect(receiver, 1))
	})

	t.Run("a change of consumer raises the fencing number", func(t *testing.T) { testFence(t, h) })

	t.Run("strictly, one at a time over all consumers", func(t *testing.T) {
		w := newWorld(t, h)
		first := w.open()
		if !first.Capabilities().Strict {
			t.Skip("this transport has no strict order, and says so")
		}
		topic := w.topic("order.paid.v1")
		sub := w.subscription("ledger", topic)
		sub.Order = driver.OrderedStrictly
		published := ids("m", 60)
		keys := newKeyOverlaps()
		receivers := []driver.Receiver{w.subscribe(first, sub), w.subscribe(w.another(first), sub)}
		w.publish(first, topic, published...)
		for _, receiver := range receivers {
			w.consume(receiver, 1, func(d *driver.Delivery) {
				keys.enter(w, d)
				runtime.Gosched()
				keys.leave(d)
				w.ack(d)
			})
		}
		w.eventually("all arrive", func() bool { return keys.total() == len(published) })
		require.Equal(t, published, keys.order[""])
	})
}

// testFence tests the fencing token of promise 7.
func testFence(t *testing.T, h Harness) {
	w := newWorld(t, h)
	first := w.open()
	skipUnlessByKey(t, first)
	topic, sub := w.topic("order.paid.v1"), w.byKey(2)
	receiver := w.subscribe(first, sub)
	require.NoError(t, first.Publish(w.ctx, topic, withKey(newMessage(topic, "a/1"), "a")))
	d := w.next(receiver)
	if d.Fence == 0 {
		t.Skip("this transport has no fencing numbers yet")
	}
	w.ack(d)
	for i := range 3 {
		require.NoError(t, receiver.Close(w.ctx))
		receiver = w.subscribe(w.another(first), sub)
		id := fmt.Sprintf("a/%d", i+2)
		require.NoError(t, first.Publish(w.ctx, topic, withKey(newMessage(topic, id), "a")))
		next := w.next(receiver)
		require.Equal(t, id, driver.MessageID(next.Message))
		require.Greater(t, next.Fence, d.Fence, "another consumer has a higher number")
		w.ack(next)
		d = next
	}
}

func skipUnlessByKey(t *testing.T, transport driver.Transport) {
	if !transport.Capabilities().ByKey {
		t.Skip("this transport has no order by key, and says so")
	}
}

func (w *world) byKey(concurrency int) driver.Subscription {
	s := w.subscription("ledger", w.topic("order.paid.v1"))
	s.Order, s.Concurrency = driver.OrderedByKey, concurrency
	return s
}

// keyOverlaps checks that no key has two unsettled deliveries.
type keyOverlaps struct {
	mu    sync.Mutex
	busy  map[string]string
	order map[string][]string
	n     int
}

func newKeyOverlaps() *keyOverlaps {
	return &keyOverlaps{busy: make(map[string]string), order: make(map[string][]string)}
}

func (l *keyOverlaps) enter(w *world, d *driver.Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, id := driver.PartitionKey(d.Message), driver.MessageID(d.Message)
	if other, out := l.busy[key]; out {
		w.Errorf("%s was handed out while %s of the same key was", id, other)
	}
	l.busy[key] = id
	l.order[key] = append(l.order[key], id)
	l.n++
}

func (l *keyOverlaps) leave(d *driver.Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, driver.PartitionKey(d.Message))
}

func (l *keyOverlaps) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *keyOverlaps) requireOrder(t *testing.T, each int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, got := range l.order {
		want := make([]string, each)
		for i := range want {
			want[i] = fmt.Sprintf("%s/%03d", key, i)
		}
		require.Equal(t, want, got)
	}
}
