//go:build unix

package amqp_test

import (
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// What was acked before a transport is closed does not come again: a quorum queue's channel forgets
// acks that it has not handed on.
func TestClose_losesNoAcks(t *testing.T) {
	raw := sharedBroker(t)
	for _, c := range []struct {
		name    string
		workers int
		order   driver.Order
		held    bool
	}{
		{"unordered", 20, driver.Unordered, false},
		{"one worker", 1, driver.Unordered, false},
		{"by key", 20, driver.OrderedByKey, false},
		{"by key, held", 20, driver.OrderedByKey, true},
		{"strict", 1, driver.OrderedStrictly, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			topic := unique("order.paid.v1")
			sub := driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: c.workers, Order: c.order}
			const n, keys = 600, 20
			first := open(t, raw)
			subscribe(t, first, sub)
			var msgs []*message.Message
			for i := range n {
				msg := newMessage(topic, strconv.Itoa(i))
				msg.Metadata[driver.HeaderPartitionKey] = strconv.Itoa(i % keys)
				msgs = append(msgs, msg)
			}
			require.NoError(t, first.Publish(t.Context(), topic, msgs...))
			closeAll(t, first)

			handled := make(map[string]int)
			for round := 1; len(handled) < n; round++ {
				require.Less(t, round, 100)
				transport := open(t, raw)
				feed := subscribe(t, transport, sub)
				if c.held && round == 1 {
					due := time.Now().Add(10 * time.Second)
					for range keys {
						require.NoError(t, next(t, feed).Settler.Redeliver(time.Until(due))) // till all are taken once
					}
					awaitHeld(t, transport, 0, n, due)
				}
				var mu sync.Mutex
				var workers sync.WaitGroup
				goal := min(len(handled)+n/6, n)
				stop := make(chan struct{})
				enough := sync.OnceFunc(func() { close(stop) })
				for range c.workers {
					workers.Go(func() {
						for {
							d, err := feed.Next(t.Context())
							if err != nil {
								return
							}
							mu.Lock()
							handled[driver.MessageID(d.Message)]++
							if len(handled) >= goal {
								enough()
							}
							mu.Unlock()
							_ = d.Settler.Ack()
						}
					})
				}
				<-stop
				closeAll(t, transport)
				workers.Wait()
			}
			again := open(t, raw)
			feed := subscribe(t, again, sub)
			publishKeyed(t, again, topic, "last/1")
			require.Equal(t, "last/1", take(t, feed), "nothing comes again")
			closeAll(t, again)
			for id, times := range handled {
				require.Equal(t, 1, times, "message %s", id)
			}
		})
	}
}

// An attempt that only the process knows of, because the message waits there for a moment, outlives it.
func TestClose_losesNoAttempts(t *testing.T) {
	broker := sharedBroker(t)
	for _, c := range []struct {
		name    string
		workers int
		order   driver.Order
	}{
		{"unordered", 4, driver.Unordered},
		{"one worker", 1, driver.Unordered},
		{"by key", 4, driver.OrderedByKey},
		{"strict", 1, driver.OrderedStrictly},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, queue := range []string{"quorum", "classic"} {
				for _, wait := range []time.Duration{0, heldHere} {
					raw, topic := withOptions(broker, "queue="+queue), unique("order.paid.v1")
					sub := driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: c.workers, Order: c.order}
					first := open(t, raw)
					feed := subscribe(t, first, sub)
					publishKeyed(t, first, topic, "a/1", "a/2")
					for i := range 4 {
						d := next(t, feed)
						for driver.MessageID(d.Message) != "a/1" {
							d = next(t, feed) // without order, the other comes in between
						}
						require.NoError(t, d.Settler.Redeliver(wait*time.Duration(i/3)))
					}
					closeAll(t, first)

					second := open(t, raw)
					feed = subscribe(t, second, sub)
					var came []string
					for range 2 {
						d := next(t, feed)
						came = append(came, driver.MessageID(d.Message))
						if driver.MessageID(d.Message) == "a/1" {
							require.GreaterOrEqual(t, d.Attempt, 5, "%s, after %s", queue, wait)
						}
						ack(t, d)
					}
					if c.order != driver.Unordered {
						require.Equal(t, []string{"a/1", "a/2"}, came)
					}
					closeAll(t, second)
				}
			}
		})
	}
}

const heldHere = 100 * time.Millisecond // the longest delay for which a message waits in the process
