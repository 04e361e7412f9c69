//go:build unix

package amqp_test

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

// A new leader hands out nothing before the last one has given back what is parked: what that one had would come behind
// what is new.
func TestLeader_waitsForTheEndOfTheLast(t *testing.T) {
	t.Parallel()
	bothQueues(t, testenv.RabbitMQ(t), func(t *testing.T, raw string) {
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

// A leader that the broker sends nothing steps down, and another process leads.
func TestLeader_standsByWhenItsTicksDoNotReturn(t *testing.T) {
	t.Parallel()
	bothQueues(t, withOptions(testenv.RabbitMQ(t), "heartbeat=2s"), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey}
		first, second := open(t, raw), open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "a/1", "b/1", "b/2")
		for range 2 {
			d := next(t, feed)
			if driver.MessageID(d.Message) == "a/1" {
				ack(t, d)
			} else {
				require.NoError(t, d.Settler.Redeliver(3*time.Second))
			}
		}
		eventually(t, "both are held", func() bool { return first.HeldForTest() == 2 })
		other := subscribe(t, second, sub)
		come := make(chan *driver.Delivery)
		go func() {
			defer close(come)
			for {
				d, err := other.Next(t.Context())
				if err != nil {
					return
				}
				come <- d
			}
		}()
		eventually(t, "the other stands by", second.StandsByForTest)
		first.LoseLeadForTest()
		for _, id := range []string{"b/1", "b/2"} {
			d := <-come
			require.Equal(t, id, driver.MessageID(d.Message))
			ack(t, d)
		}
		closeAll(t, second, first)
		<-come
	})
}

// A process that was stopped for so long that another one leads hands out nothing when it runs again.
func TestLeader_handsOutNothingAfterAPause(t *testing.T) {
	t.Parallel()
	c := newCrew(t, withOptions(testenv.RabbitMQ(t), "heartbeat=1s"), driver.OrderedByKey)
	c.work = 20 * time.Millisecond
	c.prepare()
	c.start()
	c.awaitReady()
	c.publishAll(numbered("a", 400))
	c.await("in", "a/00020")
	old := c.members[0].Process
	c.start()
	c.awaitReady()
	require.NoError(t, old.Signal(syscall.SIGSTOP))
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
