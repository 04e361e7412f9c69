package transporttest

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testBounds tests promise 8.
func testBounds(t *testing.T, h Harness) {
	if h.Bound == 0 {
		t.Run("a consumer takes no more than it can handle", func(t *testing.T) { testConsumerBound(t, h) })
		return
	}
	t.Run("a slow group slows its own publishers, and nobody else's", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		slow, quick := w.topic("slow.v1"), w.topic("quick.v1")
		slowReceiver := w.subscribe(transport, w.subscription("slow", slow))
		quickReceiver := w.subscribe(transport, w.subscription("quick", quick))

		accepted := w.fill(transport, slow, 2*h.Bound)
		require.Less(t, accepted, 2*h.Bound, "nothing stopped the publisher")
		require.GreaterOrEqual(t, accepted, h.Bound/2)
		w.publish(transport, quick, "q")
		require.Equal(t, []string{"q"}, w.collect(quickReceiver, 1))

		unblocked := make(chan error, 1)
		go func() { unblocked <- transport.Publish(w.ctx, slow, newMessage(slow, "last")) }()
		got := w.collect(slowReceiver, accepted+1)
		require.NoError(t, <-unblocked)
		require.Equal(t, "last", got[len(got)-1])
		w.nothing(slowReceiver, 50*time.Millisecond)
	})

	t.Run("publishers that wait for a full group hold nothing in others", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		both, slow, quick := w.topic("both.v1"), w.topic("slow.v1"), w.topic("quick.v1")
		w.subscribe(transport, w.subscription("slow", both, slow))
		quickReceiver := w.subscribe(transport, w.subscription("quick", both, quick))
		w.fill(transport, slow, 2*h.Bound)

		waiting, cancel := context.WithCancel(w.ctx)
		var publishers sync.WaitGroup
		for i := range 2 * h.Bound {
			msg := newMessage(both, fmt.Sprintf("blocked-%06d", i))
			msg.Payload = make([]byte, 1024)
			publishers.Go(func() { _ = transport.Publish(waiting, both, msg) })
		}
		accepted := w.fill(transport, quick, h.Bound/2)
		cancel()
		publishers.Wait()
		require.Equal(t, h.Bound/2, accepted)
		for _, id := range w.collect(quickReceiver, accepted) {
			require.NotContains(t, id, "blocked")
		}
		w.nothing(quickReceiver, 50*time.Millisecond)
	})

	t.Run("delayed messages hold back only those who publish with a delay", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		if !transport.Capabilities().Delay {
			t.Skip("the transport has no delays")
		}
		topic := w.topic("later.v1")
		receiver := w.subscribe(transport, w.subscription("later", topic))
		delayed := 0
		for ; delayed < 2*h.Bound; delayed++ {
			msg := newMessage(topic, fmt.Sprintf("later-%06d", delayed))
			msg.Payload = make([]byte, 1024)
			msg.Metadata[driver.HeaderDeliverAt] = time.Now().Add(24 * time.Hour).Format(time.RFC3339Nano)
			if !w.accepts(transport, topic, msg) {
				break
			}
		}
		require.Less(t, delayed, 2*h.Bound, "nothing stopped the publisher")
		w.publish(transport, topic, "now")
		require.Equal(t, []string{"now"}, w.collect(receiver, 1))
	})

	t.Run("a handler that publishes to its own full group does not stand still", func(t *testing.T) {
		w := newWorld(t, h)
		transport := w.open()
		topic := w.topic("slow.v1")
		receiver := w.subscribe(transport, w.subscription("slow", topic))
		accepted := w.fill(transport, topic, 2*h.Bound)
		d := w.next(receiver)
		handling := driver.ContextWithDelivery(w.ctx, d)
		for range 3 { // an acked message makes room for one message
			require.NoError(t, transport.Publish(handling, topic, newMessage(topic, "from-handler")))
		}
		w.ack(d)
		require.Len(t, w.collect(receiver, accepted-1+3), accepted-1+3)
	})
}

// fill publishes until Publish blocks, and returns how many messages were accepted.
func (w *world) fill(transport driver.Transport, topic string, limit int) int {
	payload := bytes.Repeat([]byte("x"), 1024)
	for i := range limit {
		msg := newMessage(topic, fmt.Sprintf("m-%06d", i))
		msg.Payload = payload
		if !w.accepts(transport, topic, msg) {
			return i
		}
	}
	return limit
}

// accepts publishes a message and reports whether Publish returned. It tries many times for a short time, because the machine may
// be busy: the time of one try may be over before Publish runs.
func (w *world) accepts(transport driver.Transport, topic string, msg *message.Message) bool {
	for range 30 {
		ctx, cancel := context.WithTimeout(w.ctx, 100*time.Millisecond)
		err := transport.Publish(ctx, topic, msg)
		cancel()
		if err == nil {
			return true
		}
		require.ErrorIs(w, err, context.DeadlineExceeded)
	}
	return false
}

// testConsumerBound tests that a consumer that handles nothing does not fetch 64 MiB that wait in the message system.
func testConsumerBound(t *testing.T, h Harness) {
	w := newWorld(t, h)
	transport := w.open()
	topic := w.topic("slow.v1")
	sub := w.subscription("slow", topic)
	sub.Concurrency = 4
	receiver := w.subscribe(transport, sub)
	payload := bytes.Repeat([]byte("x"), 64<<10)
	for i := range 32 {
		msgs := make([]*message.Message, 32)
		for j := range msgs {
			msgs[j] = newMessage(topic, fmt.Sprintf("m-%02d-%02d", i, j))
			msgs[j].Payload = payload
		}
		require.NoError(t, transport.Publish(w.ctx, topic, msgs...))
	}
	before := heap()
	d := w.next(receiver)
	ctx, cancel := context.WithTimeout(w.ctx, 500*time.Millisecond)
	defer cancel()
	<-ctx.Done()                                                                   // let it fetch what it wants
	w.eventually("the consumer holds little of a backlog of 64 MiB", func() bool { // other tests of the process may hold something for a while
		grown := heap() - before
		return grown < 32<<20
	})
	w.ack(d)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) //nolint:gosec // far below
}
