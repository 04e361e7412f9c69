package sql_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// A ledger records which messages were accepted and which were handled.
type ledger struct {
	mu       sync.Mutex
	accepted map[string]bool
	handled  map[string]int
}

func newLedger() *ledger { return &ledger{accepted: map[string]bool{}, handled: map[string]int{}} }

func (l *ledger) accept(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted[id] = true
}

func (l *ledger) handle(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handled[id]++
}

// balance returns how many messages were accepted, how many of them were not handled (missing), and how many were handled more than
// once (twice).
func (l *ledger) balance() (accepted, missing, twice int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.accepted {
		if l.handled[id] == 0 {
			missing++
		}
	}
	for _, n := range l.handled {
		if n > 1 {
			twice++
		}
	}
	return len(l.accepted), missing, twice
}

// deliveries returns how often a message was handled.
func (l *ledger) deliveries(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handled[id]
}

// load publishes and consumes until the test ends or stop is called. stop waits until all accepted messages are
// handled.
func load(t *testing.T, publisher, consumer driver.Transport, sub driver.Subscription) (l *ledger, stop func()) {
	l = newLedger()
	ctx, cancel := context.WithCancel(sqltest.Context(t))
	var wg sync.WaitGroup
	feed, err := consumer.Subscribe(ctx, sub)
	require.NoError(t, err)
	for range sub.Concurrency {
		wg.Go(func() { l.work(ctx, feed) })
	}
	publishing, halt := context.WithCancel(ctx)
	var publishers sync.WaitGroup
	for p := range 4 {
		publishers.Go(func() {
			for i := 0; publishing.Err() == nil; i++ {
				id := fmt.Sprintf("m-%d-%06d", p, i)
				if err := publisher.Publish(ctx, sub.Topics[0], sqltest.NewMessage(sub.Topics[0], id)); err == nil {
					l.accept(id)
				} else {
					t.Errorf("publish %s: %v", id, err)
				}
				sqltest.Pace(ctx)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		halt()
		publishers.Wait()
		require.Eventually(t, func() bool {
			_, missing, _ := l.balance()
			return missing == 0
		}, sqltest.Patience, 10*time.Millisecond, "messages are lost")
		cancel()
		wg.Wait()
	})
	t.Cleanup(stop)
	return l, stop
}

func (l *ledger) waitAccepted(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		accepted, _, _ := l.balance()
		return accepted >= n
	}, sqltest.Patience, 5*time.Millisecond, "publishing stands still")
}

func newMessages(n int) []*message.Message {
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = sqltest.NewMessage("order.paid.v1", fmt.Sprintf("m-%05d", i))
	}
	return msgs
}

// join adds a consumer of messages that are published until the test's load stops.
func (l *ledger) join(t *testing.T, consumer driver.Transport, sub driver.Subscription) {
	ctx, cancel := context.WithCancel(sqltest.Context(t))
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	feed, err := consumer.Subscribe(ctx, sub)
	require.NoError(t, err)
	for range sub.Concurrency {
		wg.Go(func() { l.work(ctx, feed) })
	}
}

// work handles the receiver's deliveries until ctx is done.
func (l *ledger) work(ctx context.Context, feed driver.Receiver) {
	for {
		d, err := feed.Next(ctx)
		if err != nil {
			return
		}
		l.handle(driver.MessageID(d.Message))
		_ = d.Settler.Ack()
	}
}
