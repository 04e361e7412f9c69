package amqp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// A walk that its caller ends while it reads comes to its end: closing a channel gets no answer that another call takes.
func TestWalk_endsWhileItReads(t *testing.T) {
	transport := open(t, withOptions(sharedBroker(t), "queue=classic"))
	topic, group := unique("order.paid.v1"), unique("ledger")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	queue := transport.PoisonQueue(group)
	msgs := make([]driver.PoisonedMessage, 300)
	for i := range msgs {
		msgs[i].Message = newMessage(topic, itoa(i))
		driver.Fault{Topic: topic, Group: group}.Set(msgs[i].Message.Metadata)
	}
	require.NoError(t, queue.Put(t.Context(), msgs...))
	enough := errors.New("enough")
	for i := range 100 { // at any time
		ended := make(chan error, 1)
		go func() {
			ended <- queue.(driver.PoisonWalker).Walk(t.Context(), func(driver.PoisonedMessage) error {
				<-time.After(time.Duration(i) * 50 * time.Microsecond)
				return enough
			})
		}()
		select {
		case err := <-ended:
			require.ErrorIs(t, err, enough)
		case <-time.After(patience):
			t.Fatal("the walk hangs")
		}
	}
	n, err := queue.Len(t.Context())
	require.NoError(t, err)
	require.Len(t, msgs, n)
	closeAll(t, transport)
}

// A walk shows each message once, though its caller uses the queue meanwhile, and many walks rewrite nothing if
// no policy asks for it.
func TestWalk_showsEachOnceAndRewritesNothing(t *testing.T) {
	raw := withOptions(sharedBroker(t), "queue=quorum")
	transport, other := open(t, raw), open(t, raw)
	group, topic := unique("ledger"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 5000
	msgs := poisonedMessages(group, topic, n, []byte("{}"))
	require.NoError(t, transport.PoisonQueue(group).Put(t.Context(), msgs...))
	walker := transport.PoisonQueue(group).(driver.PoisonWalker)
	walk := func(first func() error) {
		seen := make(map[string]bool, n)
		began := time.Now()
		require.NoError(t, walker.Walk(t.Context(), func(m driver.PoisonedMessage) error {
			if len(seen) == 0 && first != nil {
				if err := first(); err != nil {
					return err
				}
			}
			if seen[m.ID] {
				return fmt.Errorf("%s was shown twice", m.ID)
			}
			seen[m.ID] = true
			return nil
		}))
		require.Len(t, seen, n)
		t.Logf("walked through %d in %s", n, time.Since(began))
	}
	const walks = 5
	for range walks {
		walk(nil)
	}
	withBroker(t, raw, func(ch *rabbit.Channel) {
		d, there, err := ch.Get(group+".poison", false)
		require.NoError(t, err)
		require.True(t, there)
		require.EqualValues(t, walks, d.Headers["x-delivery-count"], "it is the same message")
	})
	eventually(t, "it is back", func() bool { return depth(t, raw, group+".poison") == n })
	walk(func() error {
		got, err := other.PoisonQueue(group).Len(t.Context())
		require.Equal(t, n, got)
		return err
	})
	closeAll(t, transport, other)
}

// A connection that is lost in the middle ends a walk and nothing else, however the walk is to end: what it had read is
// back, and the next walk shows it.
func TestWalk_endsWithItsConnection(t *testing.T) {
	transport := open(t, withOptions(sharedBroker(t), "queue=quorum"))
	group, topic := unique("ledger"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 300 // more than the first stride, so that the browser is in the middle
	msgs := poisonedMessages(group, topic, n, []byte("{}"))
	poison := transport.PoisonQueue(group)
	require.NoError(t, poison.Put(t.Context(), msgs...))
	ids := make([]string, 0, n)
	walk := func(ctx context.Context, visit func() error) error {
		return poison.(driver.PoisonWalker).Walk(ctx, func(m driver.PoisonedMessage) error {
			ids = append(ids, m.ID)
			return visit()
		})
	}
	for name, end := range map[string]func(stop func()) error{
		"by itself":          func(func()) error { return nil },
		"by its context":     func(stop func()) error { stop(); return nil },
		"by its caller":      func(func()) error { return errEnough },
		"by both of the two": func(stop func()) error { stop(); return errEnough },
	} {
		ctx, stop := context.WithCancel(t.Context())
		err := walk(ctx, func() error {
			transport.LoseConnectionsForTest()
			return end(stop)
		})
		stop()
		require.Error(t, err, name)
		// The broker gives up the lock of a lost connection before it has put back all that the connection had.
		eventually(t, "all are shown again", func() bool {
			ids = ids[:0]
			require.NoError(t, walk(t.Context(), func() error { return nil }), name)
			return len(ids) == n
		})
	}
	closeAll(t, transport)
}

// A count that is given up does not get in the way of the next one, nor of a close.
func TestPoisonQueue_countsThatAreGivenUp(t *testing.T) {
	u, err := rabbit.ParseURI(sharedBroker(t))
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, u.Host+":"+itoa(u.Port))
	transport := open(t, "amqp://"+u.Username+":"+u.Password+"@"+proxy.Addr()+"/")
	group := unique("ledger")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{unique("order.paid.v1")}, Concurrency: 1})
	queue := transport.PoisonQueue(group)
	count := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		n, err := queue.Len(ctx)
		require.Zero(t, n)
		return err
	}
	require.NoError(t, count(patience))
	for range 5 {
		proxy.Stall()
		require.ErrorIs(t, count(50*time.Millisecond), context.DeadlineExceeded)
		require.ErrorIs(t, count(10*time.Millisecond), context.DeadlineExceeded, "the first still waits for its answer")
		proxy.Resume()
		require.NoError(t, count(patience))
	}
	closeAll(t, transport)
}

// A call that takes some messages out of a long queue leaves the others as they are, in their order, and rewrites none of them if no
// policy asks for it.
func TestPoisonQueue_takesSomeAndRewritesNothing(t *testing.T) {
	raw := withOptions(sharedBroker(t), "queue=quorum")
	transport := open(t, raw)
	group, topic := unique("ledger"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 3000 // more than one channel reads
	msgs := poisonedMessages(group, topic, n, []byte("{}"))
	poison := transport.PoisonQueue(group)
	require.NoError(t, poison.Put(t.Context(), msgs...))
	walk := func() (ids []string) {
		require.NoError(t, poison.(driver.PoisonWalker).Walk(t.Context(), func(m driver.PoisonedMessage) error {
			ids = append(ids, m.ID)
			return nil
		}))
		return ids
	}
	all := walk()
	require.Len(t, all, n)
	require.ElementsMatch(t, all, walk())
	var some, rest []string
	for i, id := range all {
		if i%3 == 0 {
			some = append(some, id)
		} else {
			rest = append(rest, id)
		}
	}
	moved := 0
	done, err := poison.Replay(driver.WithProgress(t.Context(), func(n int) { moved += n }), some...)
	require.NoError(t, err)
	require.Len(t, some, done)
	require.Len(t, some, moved)
	require.Equal(t, len(some), depth(t, raw, group))
	withBroker(t, raw, func(ch *rabbit.Channel) {
		d, there, err := ch.Get(group+".poison", false)
		require.NoError(t, err)
		require.True(t, there)
		require.EqualValues(t, 3, d.Headers["x-delivery-count"], "it is the same message: read twice, and passed by once")
	})
	eventually(t, "it is back", func() bool { return depth(t, raw, group+".poison") == len(rest) })
	require.ElementsMatch(t, rest, walk())
	closeAll(t, transport)
}

// A queue in which another process has left a pilot is rewritten without it, and nothing is said to be lost.
func TestPoisonQueue_isRewrittenWithoutPilots(t *testing.T) {
	raw := withOptions(sharedBroker(t), "queue=quorum")
	var log bytes.Buffer
	transport := open(t, raw, func(c *amqp.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	group, topic := unique("ledger"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 150 // more than the first stride
	msgs := poisonedMessages(group, topic, n, []byte("{}"))
	poison := transport.PoisonQueue(group)
	require.NoError(t, poison.Put(t.Context(), msgs...))
	first := func() string {
		list, err := poison.List(t.Context(), "", 1)
		require.NoError(t, err)
		require.Len(t, list, 1)
		return list[0].ID
	}
	id := first()
	_, err := poison.Get(t.Context(), id)
	require.NoError(t, err)
	putRaw(t, raw, group, rabbit.Publishing{MessageId: "pilot", Headers: rabbit.Table{"leat-pilot": true}})
	_, err = poison.Get(t.Context(), id) // reads some messages for the third time, and so rewrites all
	require.NoError(t, err)
	eventually(t, "the pilot is gone", func() bool { return depth(t, raw, group+".poison") == n })
	require.Equal(t, id, first())
	closeAll(t, transport)
	require.NotContains(t, log.String(), "not rewritten")
}
