//go:build unix

package amqp_test

import (
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// delayed returns a message that is published with a delay.
func delayed(topic, id string, after time.Duration) *message.Message {
	msg := newMessage(topic, id)
	msg.Metadata[driver.HeaderDeliverAt] = time.Now().Add(after).UTC().Format(time.RFC3339Nano)
	return msg
}

// No process receives delayed messages of others: an idle one is sent fewer bytes than one of them has.
func TestDelays_idleProcessGetsNone(t *testing.T) {
	b := calmBroker(t)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		name := unique("idle")
		idle := open(t, withOptions(raw, "name="+name))
		mail := unique("mail")
		feed := subscribe(t, idle, driver.Subscription{Group: mail, Topics: []string{unique("other.v1")}, Concurrency: 1})
		go func() { _, _ = feed.Next(t.Context()) }()
		withBroker(t, raw, func(ch *rabbit.Channel) {
			eventually(t, "the other process consumes", func() bool {
				q, err := ch.QueueDeclarePassive(mail, true, false, false, false, nil)
				require.NoError(t, err)
				return q.Consumers == 1
			})
		})
		busy := open(t, raw)
		topic := unique("order.paid.v1")
		ledger := subscribe(t, busy, driver.Subscription{
			Group: unique("ledger"), Topics: []string{topic}, Concurrency: 20, Delays: []time.Duration{2 * time.Second},
		})
		sent := func() (octets int) {
			all := b.eval(t, `lists:sum([Octets || C <- rabbit_networking:connections(),
				[{send_oct, Octets}, {client_properties, [_ | _] = Table}] <- [catch rabbit_networking:connection_info(C, [send_oct, client_properties])],
				{_, _, Name} <- [lists:keyfind(<<"connection_name">>, 1, Table)], string:prefix(Name, "`+name+` (") =/= nomatch]).`)
			octets, err := strconv.Atoi(all)
			require.NoError(t, err)
			return octets
		}
		before := sent()
		require.NotZero(t, before)
		const n = 100
		const large = 64 << 10 // bytes; heartbeats and declarations that are repeated have far fewer
		for i := range n {
			msg := delayed(topic, itoa(i), 2*time.Second)
			msg.Payload = make([]byte, large)
			require.NoError(t, busy.Publish(t.Context(), topic, msg))
		}
		for range 3 * n {
			d := next(t, ledger)
			switch d.Attempt {
			case 1:
				require.NoError(t, d.Settler.Redeliver(2*time.Second)) // of the policy
			case 2:
				require.NoError(t, d.Settler.Redeliver(3*time.Second)) // not of the policy
			default:
				ack(t, d)
			}
		}
		require.Less(t, sent()-before, large)
		closeAll(t, idle, busy)
	})
}

// Messages that are due for an exchange that was deleted disturb no other service.
func TestDelays_aDeletedExchangeDisturbsNoOther(t *testing.T) {
	b := calmBroker(t)
	bothQueues(t, b.url(), func(t *testing.T, raw string) {
		exchange := unique("shop")
		shop := open(t, withOptions(raw, "exchange="+exchange))
		topic := unique("order.paid.v1")
		group := unique("theirs")
		theirs := subscribe(t, shop, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 100})
		for i := range 100 {
			publish(t, shop, topic, itoa(i))
			require.NoError(t, next(t, theirs).Settler.Redeliver(3*time.Second))
			require.NoError(t, shop.Publish(t.Context(), topic, delayed(topic, "late", 3*time.Second)))
		}
		closeAll(t, shop)
		deleteExchange(t, raw, exchange)
		withBroker(t, raw, func(ch *rabbit.Channel) {
			_, err := ch.QueueDelete(group, false, false, false)
			require.NoError(t, err)
		})

		transport := open(t, raw)
		feed := subscribe(t, transport, driver.Subscription{
			Group: unique("ours"), Topics: []string{topic}, Concurrency: 1, Delays: []time.Duration{2 * time.Second},
		})
		end := time.Now().Add(8 * time.Second)
		first := 0 // how often a message came before one that was to wait
		for i := 0; time.Now().Before(end) || first == 0; i++ {
			require.Less(t, time.Since(end), patience, "all messages wait")
			require.NoError(t, transport.Publish(t.Context(), topic, delayed(topic, strconv.Itoa(i), time.Second)))
			d := next(t, feed)
			for attempt, after := range []time.Duration{2 * time.Second, 3 * time.Second} {
				require.Equal(t, attempt+1, d.Attempt)
				require.NoError(t, d.Settler.Redeliver(after))
				publish(t, transport, topic, "now")
				now := next(t, feed)
				d = next(t, feed)
				if driver.MessageID(now.Message) == "now" {
					first++
				} else { // the machine has paused
					now, d = d, now
				}
				require.Equal(t, "now", driver.MessageID(now.Message))
				ack(t, now)
			}
			require.Equal(t, strconv.Itoa(i), driver.MessageID(d.Message))
			ack(t, d)
		}
		require.Zero(t, transport.Health().Reconnects)
		closeAll(t, transport)
	})
}

// Redeliveries to a group whose queue was deleted wait until it is there again.
func TestDelays_waitForAQueueThatWasDeleted(t *testing.T) {
	b := ownBroker(t)
	// How long the broker waits before it tries again; queues take it over when they are made.
	defer b.setting(t, "dead_letter_worker_publisher_confirm_timeout", "3000")()
	raw := b.url()
	topic := unique("order.paid.v1")
	sub := driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 10, Delays: []time.Duration{2 * time.Second}}
	for came := 1; came > 0; { // before the queue was deleted, because the machine has paused
		sub.Group = unique("ledger")
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publish(t, first, topic, "of the policy", "of a second", "of the levels")
		for _, after := range []time.Duration{2 * time.Second, time.Second, 4 * time.Second} {
			require.NoError(t, next(t, feed).Settler.Redeliver(after))
		}
		closeAll(t, first)
		withBroker(t, raw, func(ch *rabbit.Channel) {
			var err error
			came, err = ch.QueueDelete(sub.Group, false, false, false)
			require.NoError(t, err)
		})
	}
	<-time.After(6 * time.Second) // all are due
	second := open(t, raw)
	feed := subscribe(t, second, sub)
	var got []string
	for range 3 {
		d := next(t, feed)
		require.Equal(t, 2, d.Attempt)
		got = append(got, driver.MessageID(d.Message))
		ack(t, d)
	}
	require.ElementsMatch(t, []string{"of the policy", "of a second", "of the levels"}, got)
	closeAll(t, second)
}

// The rights that the package's documentation names for a producer suffice to publish, also with a delay, and for
// nothing else.
func TestRights_producersMayPublishAndNothingElse(t *testing.T) {
	b := calmBroker(t)
	group, topic := unique("ledger"), unique("order.paid.v1")
	consumer := open(t, b.url())
	feed := subscribe(t, consumer, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	require.NotEmpty(t, consumer.Diagnose(t.Context())) // makes what is shared
	user := strings.ReplaceAll(unique("producer"), ".", "")
	addDocumentedUser(t, b, "/", user, "producer")
	u, err := url.Parse(b.url())
	require.NoError(t, err)
	u.User = url.UserPassword(user, "secret")
	producer := open(t, withOptions(u.String(), "declare=false"))
	require.NoError(t, producer.Publish(t.Context(), topic, newMessage(topic, "now")))
	require.Equal(t, "now", take(t, feed))
	began := time.Now()
	require.NoError(t, producer.Publish(t.Context(), topic, delayed(topic, "later", 3*time.Second)))
	require.Equal(t, "later", take(t, feed))
	require.GreaterOrEqual(t, time.Since(began), 3*time.Second)
	require.Zero(t, producer.Health().Reconnects)

	for _, exchange := range []string{"", "leat.delay.quorum.redeliver.in", "leat.delay.quorum.redeliver.out", "leat.delay.quorum.publish.out.events"} {
		withBroker(t, u.String(), func(ch *rabbit.Channel) {
			require.NoError(t, ch.Confirm(false))
			closed := ch.NotifyClose(make(chan *rabbit.Error, 1))
			_ = ch.PublishWithContext(t.Context(), exchange, group, false, false, rabbit.Publishing{})
			require.ErrorContains(t, <-closed, "refused")
		})
	}
	withBroker(t, u.String(), func(ch *rabbit.Channel) {
		_, err := ch.Consume(group, "", true, false, false, false, nil)
		require.ErrorContains(t, err, "refused")
	})
	closeAll(t, producer, consumer)
}

// Plain Watermill queues get delayed messages as well, from the exchanges of their topics.
func TestDelays_withTheTopologyOfWatermill(t *testing.T) {
	raw := withOptions(sharedBroker(t), "topology=watermill")
	transport := open(t, raw)
	topic := strings.ReplaceAll(unique("paid"), ".", "_")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	other := open(t, raw)
	for _, after := range []time.Duration{time.Second, 3 * time.Second} {
		began := time.Now()
		require.NoError(t, other.Publish(t.Context(), topic, delayed(topic, "later", after)))
		d := next(t, feed)
		require.Equal(t, topic, d.Topic)
		require.Equal(t, 1, d.Attempt)
		require.GreaterOrEqual(t, time.Since(began), after)
		began = time.Now()
		require.NoError(t, d.Settler.Redeliver(after))
		d = next(t, feed)
		require.Equal(t, topic, d.Topic)
		require.Equal(t, 2, d.Attempt)
		require.GreaterOrEqual(t, time.Since(began), after)
		ack(t, d)
	}
	closeAll(t, transport, other)
	deleteExchange(t, raw, topic)
}
