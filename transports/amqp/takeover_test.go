//go:build unix

package amqp_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// A new leader hands out nothing before the last one has given back what is parked: what that one had would come behind
// what is new.
func TestLeader_waitsForTheEndOfTheLast(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey, Park: true}
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "a/1", "a/2")
		d := next(t, feed)
		require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
		eventually(t, "both are held", func() bool { return first.HeldForTest() == 2 })
		closeAll(t, first)

		withBroker(t, raw, func(ch *rabbit.Channel) { // as the last leader, whose end was not noticed yet
			parked, err := ch.Consume(group+".parked.1a", "", false, false, false, false, nil)
			require.NoError(t, err)
			<-parked
			second := open(t, raw)
			feed = subscribe(t, second, sub)
			queue := second.PoisonQueue(group)
			all, err := queue.List(t.Context(), "", 10)
			require.NoError(t, err)
			_, err = queue.Replay(t.Context(), all[0].ID)
			require.NoError(t, err)
			publishKeyed(t, second, topic, "a/3")
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err = feed.Next(ctx)
			require.ErrorIs(t, err, context.DeadlineExceeded, "it came too early")
			require.NoError(t, ch.Close())
			for _, id := range []string{"a/1", "a/2", "a/3"} {
				require.Equal(t, id, take(t, feed))
			}
			closeAll(t, second)
		})
	})
}

// A leader that has something to do, and to which the broker delivers nothing, steps down, and another process leads.
func TestLeader_standsByWhenItsTicksDoNotReturn(t *testing.T) {
	bothQueues(t, withOptions(sharedBroker(t), "heartbeat=2s"), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey}
		first, second := open(t, raw), open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "a/1", "b/1", "b/2")
		var out *driver.Delivery
		due := time.Now().Add(5 * time.Second)
		for range 2 {
			d := next(t, feed)
			if driver.MessageID(d.Message) == "a/1" {
				out = d
			} else {
				require.NoError(t, d.Settler.Redeliver(time.Until(due)))
			}
		}
		awaitHeld(t, first, 0, 2, due)
		other := subscribe(t, second, sub)
		come := make(chan *driver.Delivery, 10)
		var consuming sync.WaitGroup
		for _, feed := range []driver.Receiver{feed, other} { // on a busy machine the first may lead again
			consuming.Go(func() {
				for {
					d, err := feed.Next(t.Context())
					if err != nil {
						return
					}
					come <- d
				}
			})
		}
		eventually(t, "the other stands by", second.StandsByForTest)
		first.LoseLeadForTest()
		eventually(t, "the other leads", second.LeadsForTest)
		eventually(t, "the first steps down", func() bool { return !first.LeadsForTest() })
		require.Error(t, out.Settler.Ack())
		var done []string
		for !slices.Contains(done, "b/2") {
			select {
			case d := <-come:
				if d.Settler.Ack() == nil { // else the other has stepped down, too: it gets what the first had, and leads again
					done = append(done, driver.MessageID(d.Message))
				}
			case <-time.After(patience):
				t.Fatalf("only these were handled: %v", done)
			}
		}
		require.Less(t, slices.Index(done, "b/1"), slices.Index(done, "b/2"))
		closeAll(t, second, first)
		consuming.Wait()
	})
}

// A leader that stops leaves its last tick to a process that stands by, which leads then.
func TestLeader_leavesItsTickToAProcessThatStandsBy(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		transport := open(t, raw)
		feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1, Order: driver.OrderedByKey})
		withBroker(t, raw, func(ch *rabbit.Channel) {
			tick := rabbit.Publishing{MessageId: unique("tick"), Headers: rabbit.Table{"leat-note": "tick", "leat-head": "another process"}}
			require.NoError(t, ch.Publish("", group, false, false, tick))
			publishKeyed(t, transport, topic, "a/1")
			require.Equal(t, "a/1", take(t, feed)) // behind the tick
			closeAll(t, transport)
			eventually(t, "the tick is given back", func() bool {
				q, err := ch.QueueDeclarePassive(group, true, false, false, false, nil)
				return err == nil && q.Messages > 0
			})
		})
	})
}

// A process that was stopped for so long that another one leads hands out nothing when it runs again.
func TestLeader_handsOutNothingAfterAPause(t *testing.T) {
	broker := sharedBroker(t)
	c := newCrew(t, broker, driver.OrderedByKey)
	c.work = 20 * time.Millisecond
	c.prepare()
	c.raw = withOptions(broker, "heartbeat=1s") // of the one that is stopped: the others keep their connections
	c.start()
	c.awaitReady()
	all := numbered("a", 400)
	c.publishAll(all[:20])
	c.await("in", "a/00020")
	old := c.members[0].Process
	c.raw = broker
	c.start()
	c.awaitReady()
	c.publishAll(all[20 : len(all)-1])
	c.await("in", "a/00040")
	require.NoError(t, old.Signal(syscall.SIGSTOP))
	c.publish(all[len(all)-1]) // else there may be nothing left to do
	eventually(t, "the other one leads", func() bool {
		log := c.log()
		return log[len(log)-1].pid != old.Pid
	})
	stopped := len(c.log())
	require.NoError(t, old.Signal(syscall.SIGCONT))
	c.awaitDone(400)
	for _, e := range c.log()[stopped:] {
		require.False(t, e.pid == old.Pid && e.what == "in", "%s was handed out after the pause", e.id)
	}
	c.requireOrder()
}
