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

// testOrder is promise 7.
func testOrder(t *testing.T, h Harness) {
	t.Run("concurrency 1 keeps the order of arrival", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		topic := w.topic("order.paid.v1")
		feed := w.subscribe(transport, w.subscription("ledger", topic))
		published := ids("m", 200)
		w.publish(transport, topic, published...)
		require.Equal(t, published, w.collect(feed, len(published)))
	})

	t.Run("by key, with many consumers", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipUnlessByKey(t, transport)
		const keys, each = 20, 20
		feed := w.subscribe(transport, w.byKey(8))
		lanes := newLanes()
		w.consume(feed, 8, func(d *driver.Delivery) {
			lanes.enter(w, d)
			runtime.Gosched()
			lanes.leave(d)
			w.ack(d)
		})
		topic := w.topic("order.paid.v1")
		for i := range each {
			for k := range keys {
				key := fmt.Sprintf("key-%d", k)
				require.NoError(t, transport.Publish(w.ctx, topic, withKey(newMessage(topic, fmt.Sprintf("%s/%03d", key, i)), key)))
			}
		}
		w.eventually("all arrive", func() bool { return lanes.total() == keys*each })
		lanes.requireOrder(t, each)
	})

	t.Run("a message that waits holds back its key and no other", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		skipUnlessByKey(t, transport)
		topic := w.topic("order.paid.v1")
		feed := w.subscribe(transport, w.byKey(4))
		var wait atomic.Int64 // how long a/1 waits after its first delivery
		sheet := newTallySheet()
		w.consume(feed, 4, func(d *driver.Delivery) {
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
		w.untilTelling(time.Second, func(delay time.Duration) (told bool) {
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
		feed := w.subscribe(transport, w.byKey(2))
		for _, id := range []string{"a/1", "a/2"} {
			require.NoError(t, transport.Publish(w.ctx, topic, withKey(newMessage(topic, id), "a")))
		}
		d := w.next(feed)
		require.Equal(t, "a/1", driver.MessageID(d.Message))
		require.NoError(t, d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)))
		require.Equal(t, []string{"a/2"}, w.collect(feed, 1))
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
		lanes := newLanes()
		feeds := []driver.Receiver{w.subscribe(first, sub), w.subscribe(w.another(first), sub)}
		w.publish(first, topic, published...)
		for _, feed := range feeds {
			w.consume(feed, 1, func(d *driver.Delivery) {
				lanes.enter(w, d)
				runtime.Gosched()
				lanes.leave(d)
				w.ack(d)
			})
		}
		w.eventually("all arrive", func() bool { return lanes.total() == len(published) })
		require.Equal(t, published, lanes.order[""])
	})
}

// testFence is the fencing number of promise 7.
func testFence(t *testing.T, h Harness) {
	w := newWorld(t, h)
	first := w.open()
	skipUnlessByKey(t, first)
	topic, sub := w.topic("order.paid.v1"), w.byKey(2)
	feed := w.subscribe(first, sub)
	require.NoError(t, first.Publish(w.ctx, topic, withKey(newMessage(topic, "a/1"), "a")))
	d := w.next(feed)
	if d.Fence == 0 {
		t.Skip("this transport has no fencing numbers yet")
	}
	w.ack(d)
	for i := range 3 {
		require.NoError(t, feed.Close(w.ctx))
		feed = w.subscribe(w.another(first), sub)
		id := fmt.Sprintf("a/%d", i+2)
		require.NoError(t, first.Publish(w.ctx, topic, withKey(newMessage(topic, id), "a")))
		next := w.next(feed)
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

// lanes watches that no key has two messages out.
type lanes struct {
	mu    sync.Mutex
	busy  map[string]string
	order map[string][]string
	n     int
}

func newLanes() *lanes {
	return &lanes{busy: make(map[string]string), order: make(map[string][]string)}
}

func (l *lanes) enter(w *world, d *driver.Delivery) {
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

func (l *lanes) leave(d *driver.Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, driver.PartitionKey(d.Message))
}

func (l *lanes) total() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *lanes) requireOrder(t *testing.T, each int) {
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
