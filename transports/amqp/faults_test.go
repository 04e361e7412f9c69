//go:build unix

package amqp_test

import (
	"context"
	"os"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
)

// The faults that a broker and a network have, under load. The load's ledger must balance: what
// Publish returned nil for is handled.

func TestFaults_allConnectionsAreClosedUnderLoad(t *testing.T) {
	b := ownBroker(t)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		l := load(t, open(t, raw), driver.Unordered)
		for range 3 {
			l.flows(500)
			b.closeConnections(t)
		}
		l.flows(500)
		l.balance()
		eventually(t, "all connections are back", func() bool { // the other test may have closed them once more
			h := l.transport.Health()
			return h.Connected && h.Reconnects >= 6
		})
	})
}

func TestFaults_theBrokerIsKilledUnderLoad(t *testing.T) {
	b := ownBroker(t)
	loads := []*ledger{
		load(t, open(t, withOptions(b.url(), "queue=quorum")), driver.Unordered),
		load(t, open(t, withOptions(b.url(), "queue=classic")), driver.Unordered),
	}
	for _, l := range loads {
		l.flows(1000)
	}
	b.kill(t)
	for _, l := range loads {
		require.Eventually(t, func() bool { return !l.transport.Health().Connected }, patience, time.Millisecond)
	}
	b.start(t)
	for _, l := range loads {
		l.flows(1000)
		l.balance()
	}
}

// TestFaults_aMemoryAlarmStopsOnlyPublishers holds the alarm until it has had its effects;
// LEAT_TEST_LONG=1 holds it for ten seconds more, and takes classic queues too.
func TestFaults_aMemoryAlarmStopsOnlyPublishers(t *testing.T) {
	b := ownBroker(t)
	hold, queues := time.Duration(0), []string{"quorum"}
	if os.Getenv("LEAT_TEST_LONG") != "" {
		hold, queues = 10*time.Second, []string{"quorum", "classic"}
	}
	for _, queue := range queues {
		t.Run(queue, func(t *testing.T) {
			transport := open(t, withOptions(b.url(), "queue="+queue))
			l := load(t, transport, driver.Unordered)
			l.flows(500)
			end := b.memoryAlarm(t)
			defer end()
			eventually(t, "the alarm is seen", func() bool { return transport.Health().Blocked != "" })
			eventually(t, "consumers empty the queue meanwhile", func() bool { return len(l.missing()) == 0 })
			accepted, _ := l.counts()

			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			began := time.Now()
			err := transport.Publish(ctx, l.topic, newMessage(l.topic, "during the alarm"))
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "blocked by the broker: low on memory")
			require.Less(t, time.Since(began), patience)

			<-time.After(hold)
			require.NotEmpty(t, transport.Health().Blocked)
			during, _ := l.counts()
			require.LessOrEqual(t, during, accepted+8, "what was on its way is confirmed, one message of each publisher, and no more")
			end()
			l.flows(500)
			eventually(t, "the end of the alarm is seen", func() bool { return transport.Health().Blocked == "" })
			l.balance()
		})
	}
}

func TestFaults_theNetworkFailsUnderLoad(t *testing.T) {
	broker := sharedBroker(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	for _, fault := range []struct {
		name   string
		inject func(*testenv.Proxy)
	}{
		{"cut", func(p *testenv.Proxy) { p.CutAll() }},
		{"stalled for a while", func(p *testenv.Proxy) {
			p.Stall()
			<-time.After(time.Second)
			p.Resume()
		}},
		{"half open until the heartbeat notices", func(p *testenv.Proxy) {
			p.Stall()
			<-time.After(4 * time.Second) // three heartbeats
			p.CutAll()
			p.Resume()
		}},
		{"refused for a while", func(p *testenv.Proxy) {
			p.Refuse()
			p.CutAll()
			<-time.After(500 * time.Millisecond)
			p.Accept()
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			proxy := testenv.NewProxy(t, u.Host+":"+itoa(u.Port))
			l := load(t, open(t, "amqp://"+u.Username+":"+u.Password+"@"+proxy.Addr()+"/?heartbeat=1s"), driver.Unordered)
			l.flows(300)
			fault.inject(proxy)
			l.flows(300)
			l.balance()
		})
	}
}

func TestFaults_aQueueIsDeletedUnderItsConsumer(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 2})
	publish(t, transport, topic, "a")
	ack(t, next(t, feed))
	for _, id := range []string{"b", "c", "d"} {
		withBroker(t, broker, func(ch *rabbit.Channel) {
			_, err := ch.QueueDelete(group, false, false, false)
			require.NoError(t, err)
		})
		eventually(t, "the queue is made again", func() bool {
			return transport.Publish(t.Context(), topic, newMessage(topic, id)) == nil
		})
		d := next(t, feed)
		require.Equal(t, id, driver.MessageID(d.Message), "an empty message would be a ghost")
		ack(t, d)
	}
	closeAll(t, transport)
}

func TestFaults_theExchangeIsDeletedUnderPublishers(t *testing.T) {
	broker := sharedBroker(t)
	exchange := unique("events")
	transport := open(t, withOptions(broker, "exchange="+exchange))
	t.Cleanup(func() { deleteExchange(t, broker, exchange) })
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 2})
	publish(t, transport, topic, "a")
	ack(t, next(t, feed))
	deleteExchange(t, broker, exchange)
	publish(t, transport, topic, "b", "c")
	require.Equal(t, []string{"b", "c"}, []string{take(t, feed), take(t, feed)})
	closeAll(t, transport)
}

func TestPublish_refusesHeadersTooLargeForAFrame(t *testing.T) {
	transport := open(t, sharedBroker(t))
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	msg := newMessage(topic, "big")
	msg.Metadata["stack"] = string(make([]byte, 140_000))
	err := transport.Publish(t.Context(), topic, msg)
	require.ErrorContains(t, err, "message big has 140")
	require.ErrorContains(t, err, "put large data into the payload")

	msg.Metadata["stack"] = string(make([]byte, 110_000)) // fits, and goes all the way, fault and delay included
	require.NoError(t, transport.Publish(t.Context(), topic, msg))
	d := next(t, feed)
	require.NoError(t, d.Settler.Redeliver(time.Second))
	d = next(t, feed)
	require.Len(t, d.Message.Metadata["stack"], 110_000)
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, context.DeadlineExceeded)))
	require.Zero(t, transport.Health().Reconnects)
	closeAll(t, transport)
}

func TestPoison_declaresAQueueThatWasDeleted(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "bad")
	d := next(t, feed)
	withBroker(t, broker, func(ch *rabbit.Channel) {
		_, err := ch.QueueDelete(group+".poison", false, false, false)
		require.NoError(t, err)
	})
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, context.DeadlineExceeded)))
	n, err := transport.PoisonQueue(group).Len(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	closeAll(t, transport)
}

func TestPoison_leavesTheDeliveryUnsettledIfTheQueueIsUnreachable(t *testing.T) {
	broker := sharedBroker(t)
	u, err := rabbit.ParseURI(broker)
	require.NoError(t, err)
	proxy := testenv.NewProxy(t, u.Host+":"+itoa(u.Port))
	transport := open(t, "amqp://"+u.Username+":"+u.Password+"@"+proxy.Addr()+"/")
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "bad")
	d := next(t, feed)
	proxy.Stall()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, d.Settler.Poison(ctx, driver.NewFault(d, context.DeadlineExceeded)), context.DeadlineExceeded)
	proxy.Resume()
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, context.DeadlineExceeded)))
	closeAll(t, transport)
}
