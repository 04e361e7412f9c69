package amqp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func TestPoisonQueue_ofThousands(t *testing.T) {
	broker := sharedBroker(t)
	transport, other := open(t, broker), open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	const n = 2500 // more than two strides
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	fillPoison(t, transport, feed, topic, n)

	poison := other.PoisonQueue(group)
	began := time.Now()
	var ids []string
	for after := ""; ; after = ids[len(ids)-1] {
		page, err := poison.List(t.Context(), after, 100)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, p := range page {
			require.Equal(t, fmt.Sprintf("m-%05d", len(ids)), driver.MessageID(p.Message))
			ids = append(ids, p.ID)
		}
	}
	require.Len(t, ids, n)
	t.Logf("listed %d in pages of 100 in %s", n, time.Since(began))
	// bench/ has the figures: BenchmarkPoisonClasses.

	began = time.Now()
	_, err := poison.Get(t.Context(), ids[n-1])
	require.NoError(t, err)
	t.Logf("got the last in %s", time.Since(began))

	began = time.Now()
	moved, err := poison.Replay(t.Context(), ids[:500]...)
	require.NoError(t, err)
	require.Equal(t, 500, moved)
	t.Logf("replayed 500 in %s", time.Since(began))
	for i := range 500 {
		require.Equal(t, fmt.Sprintf("m-%05d", i), take(t, feed))
	}

	began = time.Now()
	dropped, err := poison.Drop(t.Context(), ids[500:n-10]...)
	require.NoError(t, err)
	require.Equal(t, n-510, dropped)
	t.Logf("dropped %d in %s", dropped, time.Since(began))
	left, err := transport.PoisonQueue(group).Len(t.Context())
	require.NoError(t, err)
	require.Equal(t, 10, left)
	closeAll(t, transport, other)
}

// A list is complete, however long its messages are under way.
func TestPoisonQueue_listOverASlowNetworkIsComplete(t *testing.T) {
	broker := sharedBroker(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	transport := open(t, broker)
	slow := open(t, "amqp://"+u.Username+":"+u.Password+"@"+slowly(t, u.Host+":"+itoa(u.Port))+"/")
	group, topic := unique("ledger"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	msgs := poisonedMessages(group, topic, 40, make([]byte, 100_000))
	require.NoError(t, transport.PoisonQueue(group).Put(t.Context(), msgs...))
	list, err := slow.PoisonQueue(group).List(t.Context(), "", len(msgs))
	require.NoError(t, err)
	require.Len(t, list, len(msgs))
	closeAll(t, transport, slow)
}

// slowly returns a way to a server that passes about a megabyte a second.
func slowly(t *testing.T, target string) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	pass := func(to io.WriteCloser, from io.Reader) {
		defer func() { _ = to.Close() }()
		for buffer := make([]byte, 16<<10); ; <-time.After(16 * time.Millisecond) {
			n, err := from.Read(buffer)
			if _, failure := to.Write(buffer[:n]); err != nil || failure != nil {
				return
			}
		}
	}
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
			all.Go(func() { pass(server, client) })
			all.Go(func() { pass(client, server) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		all.Wait()
	})
	return listener.Addr().String()
}

func TestPoisonQueue_isUsedByManyProcesses(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 200
	fillPoison(t, transport, feed, topic, n)
	var wg sync.WaitGroup
	for range 3 {
		other := open(t, broker)
		wg.Go(func() {
			for range 5 {
				list, err := other.PoisonQueue(group).List(t.Context(), "", n)
				if err != nil || len(list) != n || driver.MessageID(list[0].Message) != "m-00000" {
					t.Errorf("listed %d of %d: %v", len(list), n, err)
				}
			}
			closeAll(t, other)
		})
	}
	wg.Wait()
	closeAll(t, transport)
}

func TestPoisonQueue_ofAnUnknownGroupIsEmpty(t *testing.T) {
	transport := open(t, sharedBroker(t))
	poison := transport.PoisonQueue(unique("nobody"))
	n, err := poison.Len(t.Context())
	require.NoError(t, err)
	require.Zero(t, n)
	list, err := poison.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Empty(t, list)
	_, err = poison.Get(t.Context(), "x")
	require.ErrorIs(t, err, driver.ErrNotFound)
	closeAll(t, transport)
}

// fillPoison poisons n messages, m-00000 and so on.
func fillPoison(t *testing.T, transport driver.Transport, feed driver.Receiver, topic string, n int) {
	t.Helper()
	msgs := make([]*message.Message, n)
	for i := range msgs {
		msgs[i] = newMessage(topic, fmt.Sprintf("m-%05d", i))
	}
	require.NoError(t, transport.Publish(t.Context(), topic, msgs...))
	for range n {
		d := next(t, feed)
		require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, context.Canceled)))
	}
}

// A foreign producer may fill a frame with headers. The fault has room beside them, its stack has not
// and stays out: with it the broker would close the connection, again and again.
func TestPoison_stackFitsInAFrame(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	large := strings.Repeat("x", 124<<10)
	withBroker(t, broker, func(ch *rabbit.Channel) {
		require.NoError(t, ch.Publish("", group, false, false, rabbit.Publishing{MessageId: "m-1", Headers: rabbit.Table{"large": large}, Body: []byte("{}")}))
	})
	publish(t, transport, topic, "m-2")
	for range 2 {
		d := next(t, feed)
		fault := driver.NewFault(d, errors.New("broken"))
		fault.Stack = strings.Repeat("y", 4<<10)
		require.NoError(t, d.Settler.Poison(t.Context(), fault))
	}
	list, err := transport.PoisonQueue(group).List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, list, 2)
	require.Equal(t, large, list[0].Message.Metadata["large"])
	require.Equal(t, "broken", list[0].Fault.Text)
	require.Empty(t, list[0].Fault.Stack)
	require.Len(t, list[1].Fault.Stack, 4<<10)
	closeAll(t, transport)
}

// The time of the first failure goes with a message through the delay queues.
func TestHistory_firstFailureOutlivesALongDelay(t *testing.T) {
	transport := open(t, sharedBroker(t))
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "m-1")
	d := next(t, feed)
	since := time.Now().Add(-time.Hour)
	d.FailedSince = since
	require.NoError(t, d.Settler.Redeliver(3*time.Second))
	d = next(t, feed)
	require.Equal(t, 2, d.Attempt)
	require.True(t, since.Equal(d.FailedSince))
	require.NotContains(t, d.Message.Metadata, driver.HeaderFaultFailedAt)
	ack(t, d)
	closeAll(t, transport)
}

// TestPoisonQueue_takenMessagesStayOut takes many from between others: a quorum queue forgets acks that
// wait for the disk when their channel is closed.
func TestPoisonQueue_takenMessagesStayOut(t *testing.T) {
	transport := open(t, sharedBroker(t))
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 600
	msgs := poisonedMessages(group, topic, n, nil)
	poison := transport.PoisonQueue(group)
	require.NoError(t, poison.Put(t.Context(), msgs...))
	list, err := poison.List(t.Context(), "", n)
	require.NoError(t, err)
	var odd, even []string
	for i, m := range list {
		if i%2 == 0 {
			even = append(even, m.ID)
		} else {
			odd = append(odd, m.ID)
		}
	}
	done, err := poison.Drop(t.Context(), odd...)
	require.NoError(t, err)
	require.Len(t, odd, done)
	left, err := poison.List(t.Context(), "", n)
	require.NoError(t, err)
	require.Len(t, left, len(even))

	done, err = poison.Replay(t.Context(), even[100:]...)
	require.NoError(t, err)
	require.Equal(t, len(even)-100, done)
	left, err = poison.List(t.Context(), "", n)
	require.NoError(t, err)
	require.Len(t, left, 100)
	for i := range len(even) - 100 {
		require.Equal(t, fmt.Sprintf("m-%05d", 200+2*i), take(t, feed))
	}
	closeAll(t, transport)
}
