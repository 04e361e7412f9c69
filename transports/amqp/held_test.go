//go:build unix

package amqp_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// What waits for its next try keeps its time and its attempts when the process dies, and its key stays
// behind it.
func TestOrder_waitingMessageOutlivesItsProcess(t *testing.T) {
	broker := sharedBroker(t)
	for _, order := range []driver.Order{driver.OrderedByKey, driver.OrderedStrictly} {
		t.Run(order.String(), func(t *testing.T) {
			t.Parallel()
			bothQueues(t, broker, func(t *testing.T, raw string) {
				c := newCrew(t, raw, order)
				c.prepare()
				c.publish("a/1", planWait, "5s")
				c.publish("a/2")
				c.publish("a/3")
				c.start()
				c.await("held", "a/1")
				c.kill(0)
				c.start()
				c.awaitDone(3)
				c.requireOrder()
				again := c.await("done", "a/1")
				require.False(t, again.at.Before(c.await("waits", "a/1").at.Add(5*time.Second)), "its time was forgotten")
				require.GreaterOrEqual(t, again.attempt, 2)
			})
		})
	}
}

// So it does when the broker is killed.
func TestOrder_waitingMessageOutlivesItsBroker(t *testing.T) {
	b := ownBroker(t)
	together := b.together(2, b.kill)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		restart := together(t)
		c := newCrew(t, raw, driver.OrderedByKey)
		c.prepare()
		c.publish("a/1", planWait, "10s")
		c.publish("a/2")
		c.start()
		c.await("held", "a/1")
		restart()
		c.publish("a/3")
		c.awaitDone(3)
		c.requireOrder()
		again := c.await("done", "a/1")
		require.False(t, again.at.Before(c.await("waits", "a/1").at.Add(10*time.Second)), "its time was forgotten")
		require.Equal(t, c.handedOut("a/1"), again.attempt) // 2, unless its time came before the broker's end
	})
}

// A key with more messages than a process may fetch holds back itself only, whether its head waits for
// its time or for an operator.
func TestOrder_keyWithManyFollowersBlocksNoOther(t *testing.T) {
	broker := sharedBroker(t)
	n := 5000
	if s := os.Getenv("LEAT_TEST_FOLLOWERS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	for _, plan := range [][]string{{planWait, "1h"}, {planPoison, "yes"}} {
		t.Run(plan[0], func(t *testing.T) {
			bothQueues(t, broker, func(t *testing.T, raw string) {
				c := newCrew(t, raw, driver.OrderedByKey)
				c.work, c.park = 0, true
				c.prepare()
				c.publish("a/00000", plan...)
				c.publishAll(numbered("a", n))
				c.publishAll(numbered("b", 100))
				c.start()
				began := time.Now()
				c.awaitDone(100)
				t.Logf("the other key was done after %s", time.Since(began))
				withBroker(t, raw, func(ch *rabbit.Channel) {
					eventually(t, "what follows is held", func() bool {
						q, err := ch.QueueDeclarePassive(c.group, true, false, false, false, nil)
						require.NoError(t, err)
						return q.Messages == 0
					})
				})
				c.kill(0)
				c.start()
				c.publish("b/00101")
				c.awaitDone(101)
				if plan[0] == planPoison {
					began := time.Now()
					c.mend()
					queue := c.PoisonQueue(c.group)
					all, err := queue.List(t.Context(), "", 10)
					require.NoError(t, err)
					require.Len(t, all, 1)
					_, err = queue.Replay(t.Context(), all[0].ID)
					require.NoError(t, err)
					c.awaitDone(101 + 1 + n)
					t.Logf("all that was parked was done after %s", time.Since(began))
				}
				c.requireOrder()
			})
		})
	}
}

func numbered(key string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("%s/%05d", key, i+1)
	}
	return ids
}

// A held message that kills its process comes with growing attempts, so that it can be poisoned; one
// that waits meanwhile is not counted along.
func TestOrder_waitingMessageKillsItsProcess(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		c := newCrew(t, raw, driver.OrderedByKey)
		c.prepare()
		c.publish("a/1", planWait, "300ms", planKill, "yes")
		c.publish("b/1", planWait, "1h")
		c.publish("a/2")
		highest := 1
		for crash := 0; highest < 5; crash++ {
			require.Less(t, crash, 10, "the attempts do not grow")
			c.start()
			_ = c.members[0].Wait()
			require.Equal(t, 9, c.members[0].ProcessState.ExitCode())
			c.members = nil
			before := highest
			for _, e := range c.log() {
				if e.what == "in" && e.id == "a/1" {
					highest = max(highest, e.attempt)
				}
			}
			require.LessOrEqual(t, highest, before+1)
		}
		require.Empty(t, c.done())
		for _, e := range c.log() {
			require.False(t, e.id == "b/1" && e.attempt > 1, "it was not handed out")
		}
	})
}

// What a process leaves in peace costs no attempt, though its time has come.
func TestOrder_stopCostsWaitingMessagesNoAttempt(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey}
		for stop := range 3 {
			transport := open(t, raw)
			feed := subscribe(t, transport, sub)
			if stop == 0 {
				publishKeyed(t, transport, topic, "a/1", "a/2")
				began := time.Now()
				require.NoError(t, next(t, feed).Settler.Redeliver(10*time.Second))
				eventually(t, "it is held", func() bool { return transport.HeldForTest() >= 1 || time.Since(began) > 10*time.Second })
				closeAll(t, transport)
				continue
			}
			d := next(t, feed)
			require.Equal(t, "a/1", driver.MessageID(d.Message))
			require.Equal(t, 2, d.Attempt, "after %d stops", stop)
			require.NoError(t, d.Settler.GiveBack(0)) // it is ready when the transport is closed
			if stop == 2 {
				require.Equal(t, "a/1", take(t, feed))
				require.Equal(t, "a/2", take(t, feed))
			}
			closeAll(t, transport)
		}
	})
}

// A crash between the copy and the ack leaves a message in two places. The original is the one too many.
func TestOrder_originalOfACopyIsDropped(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey}
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "a/1")
		began := time.Now()
		require.NoError(t, next(t, feed).Settler.Redeliver(10*time.Second))
		awaitHeld(t, first, 0, 1, began.Add(10*time.Second))
		require.NoError(t, feed.Close(t.Context()))
		closeAll(t, first)

		second := open(t, raw)
		feed = subscribe(t, second, sub)
		publishKeyed(t, second, topic, "a/1", "a/2") // as the crash would have left it
		withBroker(t, raw, func(ch *rabbit.Channel) {
			deliveries, err := ch.Consume(group, "", false, false, false, false, nil)
			require.NoError(t, err)
			for d := range deliveries {
				if d.MessageId == "a/1" {
					break
				}
			}
		}) // the channel ends: it comes again
		d := next(t, feed)
		require.Equal(t, "a/1", driver.MessageID(d.Message))
		require.Equal(t, 2, d.Attempt)
		require.GreaterOrEqual(t, time.Since(began), 10*time.Second)
		ack(t, d)
		require.Equal(t, "a/2", take(t, feed))
		publishKeyed(t, second, topic, "a/3")
		require.Equal(t, "a/3", take(t, feed))
		closeAll(t, second)
	})
}

// Bodies that are too large to be here at once are fetched when it is their turn, also after what is
// held went back to its queue for a moment.
func TestOrder_waitingBodiesAreFetched(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic := unique("order.paid.v1")
		transport := open(t, withOptions(raw, "prefetch=20"))
		feed := subscribe(t, transport, driver.Subscription{
			Group: unique("ledger"), Topics: []string{topic}, Concurrency: 12, Order: driver.OrderedByKey,
		})
		const keys, each = 6, 20 // 24 MB
		for i := range each {
			for k := range keys {
				msg := newMessage(topic, fmt.Sprintf("k%d/%02d", k, i))
				msg.Metadata[driver.HeaderPartitionKey] = fmt.Sprint(k)
				msg.Payload = bytes.Repeat([]byte{byte('a' + k)}, 200_000)
				require.NoError(t, transport.Publish(t.Context(), topic, msg))
			}
		}
		due := time.Now().Add(10 * time.Second)
		for range keys {
			require.NoError(t, next(t, feed).Settler.Redeliver(time.Until(due))) // till all are taken once
		}
		eventually(t, "most are held", func() bool { return transport.HeldForTest() > keys*each-20 || time.Now().After(due) })
		var mu sync.Mutex
		got := make(map[string][]string)
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				for {
					d, err := feed.Next(t.Context())
					if err != nil {
						return
					}
					key, _, _ := strings.Cut(driver.MessageID(d.Message), "/")
					mu.Lock()
					got[key] = append(got[key], driver.MessageID(d.Message))
					mu.Unlock()
					if len(d.Message.Payload) != 200_000 || d.Message.Payload[0] != 'a'+key[1]-'0' {
						t.Errorf("%s has another's payload", driver.MessageID(d.Message))
					}
					_ = d.Settler.Ack()
				}
			})
		}
		eventually(t, "all come", func() bool {
			mu.Lock()
			defer mu.Unlock()
			n := 0
			for _, list := range got {
				n += len(list)
			}
			return n == keys*each
		})
		closeAll(t, transport)
		wg.Wait()
		for key, list := range got {
			require.True(t, slices.IsSorted(list), "%s: %v", key, list)
			require.Len(t, list, each)
		}
	})
}

func publishKeyed(t testing.TB, transport driver.Transport, topic string, ids ...string) {
	t.Helper()
	for _, id := range ids {
		msg := newMessage(topic, id)
		msg.Metadata[driver.HeaderPartitionKey], _, _ = strings.Cut(id, "/")
		require.NoError(t, transport.Publish(t.Context(), topic, msg))
	}
}

// A message without a key holds back nothing, and comes again in its time.
func TestOrder_messageWithoutAKeyIsRedelivered(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic := unique("order.paid.v1")
		transport := open(t, raw)
		feed := subscribe(t, transport, driver.Subscription{
			Group: unique("ledger"), Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey, Park: true,
		})
		publishKeyed(t, transport, topic, "/1", "/2")
		began := time.Now()
		const wait = 3 * time.Second // the other is taken meanwhile
		require.NoError(t, next(t, feed).Settler.Redeliver(wait))
		require.Equal(t, "/2", take(t, feed))
		d := next(t, feed)
		require.Equal(t, "/1", driver.MessageID(d.Message))
		require.Equal(t, 2, d.Attempt)
		require.GreaterOrEqual(t, time.Since(began), wait)
		require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("broken"))))
		publishKeyed(t, transport, topic, "/3")
		require.Equal(t, "/3", take(t, feed))
		closeAll(t, transport)
	})
}
