package amqp_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
)

// ledger is a load whose books are kept: what was accepted, and how often each message was handled.
type ledger struct {
	t         *testing.T
	topic     string
	group     string
	transport *amqp.Transport
	ctx       context.Context

	mu       sync.Mutex
	accepted map[string]bool
	failed   []error
	handled  map[string]int
	stop     func()
}

// load publishes from some goroutines and handles with some workers until stop.
func load(t *testing.T, transport *amqp.Transport, order driver.Order) *ledger {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	l := &ledger{
		t: t, topic: unique("order.paid.v1"), group: unique("ledger"), transport: transport, ctx: ctx,
		accepted: make(map[string]bool), handled: make(map[string]int),
	}
	feed := l.subscribe(order)
	var consumers, publishers sync.WaitGroup
	for range 8 {
		consumers.Go(func() { l.consume(feed) })
	}
	publishing, stop := context.WithCancel(ctx)
	for p := range 8 {
		publishers.Go(func() {
			for i := 0; publishing.Err() == nil; i++ {
				l.publish(fmt.Sprintf("%d/%06d", p, i))
			}
		})
	}
	l.stop = sync.OnceFunc(func() {
		stop()
		publishers.Wait()
	})
	t.Cleanup(func() {
		l.stop()
		closing, done := context.WithTimeout(context.Background(), patience)
		defer done()
		require.NoError(t, transport.Close(closing))
		cancel()
		consumers.Wait()
	})
	return l
}

func (l *ledger) subscribe(order driver.Order) driver.Receiver {
	feed, err := l.transport.Subscribe(l.ctx, driver.Subscription{
		Group: l.group, Topics: []string{l.topic}, Known: []string{l.topic}, Concurrency: 8, Order: order,
	})
	require.NoError(l.t, err)
	return feed
}

func (l *ledger) consume(feed driver.Receiver) {
	for {
		d, err := feed.Next(l.ctx)
		if err != nil {
			if !errors.Is(err, driver.ErrClosed) && l.ctx.Err() == nil {
				l.t.Errorf("next: %v", err)
			}
			return
		}
		if driver.MessageID(d.Message) == "" || len(d.Message.Payload) == 0 {
			l.t.Errorf("a message came that nobody published")
		}
		l.mu.Lock()
		l.handled[driver.MessageID(d.Message)]++
		l.mu.Unlock()
		_ = d.Settler.Ack() // a late one is redelivered
	}
}

func (l *ledger) publish(id string) {
	err := l.transport.Publish(l.ctx, l.topic, newMessage(l.topic, id))
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.accepted[id] = true
	} else if l.ctx.Err() == nil {
		l.failed = append(l.failed, err)
	}
}

func (l *ledger) counts() (accepted, handled int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.accepted), len(l.handled)
}

// flows waits until so many more messages were published and handled.
func (l *ledger) flows(n int) {
	l.t.Helper()
	accepted, handled := l.counts()
	eventually(l.t, "messages flow", func() bool {
		a, h := l.counts()
		return a >= accepted+n && h >= handled+n
	})
}

// balance stops publishing and makes sure that everything accepted is handled and nothing failed.
func (l *ledger) balance() (doubles int) {
	l.t.Helper()
	l.stop()
	eventually(l.t, "everything accepted is handled", func() bool { return len(l.missing()) == 0 })
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(l.t, l.failed, "a publisher should wait, not fail")
	for _, n := range l.handled {
		doubles += n - 1
	}
	l.t.Logf("accepted %d, handled %d, doubles %d", len(l.accepted), len(l.handled), doubles)
	return doubles
}

func (l *ledger) missing() (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.accepted {
		if l.handled[id] == 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

func newMessage(topic, id string) *message.Message {
	msg := message.NewMessage(id, []byte(`{"id":"`+id+`"}`))
	msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: topic, driver.HeaderSource: "test"}
	return msg
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}
