package amqp_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
)

// A service counts its own groups over AMQP, with and without a management API.
func TestGroups_ofAServiceAreItsOwn(t *testing.T) {
	broker := sharedBroker(t)
	for _, options := range []string{"queue=quorum", "queue=classic", "topology=watermill"} {
		t.Run(options, func(t *testing.T) {
			raw := withOptions(broker, options)
			service, other := open(t, raw), open(t, raw)
			group, topic := unique("ledger"), unique("order.paid.v1")
			feed := subscribe(t, service, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
			subscribe(t, other, driver.Subscription{Group: unique("mail"), Topics: []string{topic}, Concurrency: 1})
			t.Cleanup(func() { deleteExchange(t, broker, topic) })
			publish(t, service, topic, "bad", "a", "b", "c")
			poison(t, next(t, feed))
			eventually(t, "the counts are true", func() bool {
				info := groupOf(t, service, group)
				return info.Poisoned == 1 && info.Consumers == 1 && info.InFlight == driver.Unknown && info.Delayed == driver.Unknown
			})
			groups, err := service.Groups(t.Context())
			require.NoError(t, err)
			require.Len(t, groups, 1)
			require.Equal(t, []string{topic}, groups[0].Topics)
			require.Equal(t, map[string][]string{topic: {group}}, topicsOf(t, service))
			deleteQueue(t, raw, service.QueuesForTest()[0])
			require.NotPanics(t, func() { groupOf(t, service, group) })
			closeAll(t, service, other)
		})
	}
}

func TestGroups_theLeaderOfAnOrderedOneIsCounted(t *testing.T) {
	service := open(t, sharedBroker(t))
	group, topic := unique("ledger"), unique("order.paid.v1")
	sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1, Order: driver.OrderedByKey, Park: true}
	feed := subscribe(t, service, sub)
	require.Zero(t, groupOf(t, service, group).Consumers)
	require.Equal(t, driver.Unknown, groupOf(t, service, group).Delayed, "nobody leads")
	publishKeyed(t, service, topic, "a/1", "b/1", "c/1", "a/2", "a/3", "b/2")
	var out *driver.Delivery
	for range 3 {
		switch d := next(t, feed); driver.MessageID(d.Message) {
		case "a/1":
			poison(t, d)
		case "b/1":
			require.NoError(t, d.Settler.Redeliver(time.Hour))
		default:
			out = d
		}
	}
	eventually(t, "the leader's counts are shown", func() bool {
		g := groupOf(t, service, group)
		return g.Consumers == 1 && g.InFlight == 1 && g.Delayed == 1 && g.Parked == 3 && g.ParkedKeys == 1 && g.Poisoned == 1 && g.Waiting == 0
	})
	ack(t, out)
	closeAll(t, service)
}

// An operator's commands need the API to find groups, and say how to get it; those that name a group do not.
func TestGroups_needTheAPI(t *testing.T) {
	broker := sharedBroker(t)
	service := open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, service, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	publish(t, service, topic, "bad")
	poison(t, next(t, feed))
	tool, _ := operator(t, withOptions(bare(broker), "management=http://127.0.0.1:1"))
	_, err := tool.Groups(t.Context())
	failed, ok := errors.AsType[*amqp.ManagementError](err)
	require.True(t, ok, err)
	require.Contains(t, failed.Fix(), "rabbitmq-plugins enable rabbitmq_management")
	require.Contains(t, failed.Fix(), "set_user_tags")
	_, err = tool.Topics(t.Context())
	require.ErrorAs(t, err, &failed)
	list, err := tool.PoisonQueue(group).List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, list, 1)
	_, err = tool.PoisonQueue(group).Replay(t.Context(), list[0].ID)
	require.NoError(t, err)
	require.Equal(t, "bad", take(t, feed))
	closeAll(t, service)
}

// An older version's list of groups is left as it is, and the doctor says when it can go.
func TestDiagnose_namesTheQueuesOfOlderVersions(t *testing.T) {
	b, vhost, raw := managed(t)
	withBroker(t, raw, func(ch *rabbit.Channel) {
		_, err := ch.QueueDeclare("leat.groups.quorum", true, false, false, false, rabbit.Table{"x-queue-type": "quorum", "x-max-length": 10000})
		require.NoError(t, err)
	})
	service := open(t, raw)
	sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1, Delays: []time.Duration{5 * time.Second}}
	subscribe(t, service, sub)
	sub.Delays = []time.Duration{time.Minute}
	tool, _ := operator(t, raw)
	closeAll(t, service)
	service = open(t, raw)
	subscribe(t, service, sub)
	require.Contains(t, findingOf(t, tool.Diagnose(t.Context()), "queue leat.groups.quorum").Text, "delete it when none of them runs")
	feed := subscribe(t, service, sub)
	var consuming sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	consuming.Go(func() { _, _ = feed.Next(ctx) })
	eventually(t, "the delays are named", func() bool {
		f := findingOf(t, tool.Diagnose(t.Context()), "group "+sub.Group)
		return strings.Contains(f.Text, "delays with queues are 1m0s, 5s") || strings.Contains(f.Text, "delays with queues are 1m, 5s")
	})
	stop()
	consuming.Wait()
	require.Contains(t, b.names(t, "queues", vhost), "leat.groups.quorum")
	closeAll(t, service)
}

func TestTail_takesNoMessages(t *testing.T) {
	b := ownBroker(t)
	transport, operator := open(t, b.url()), open(t, b.url())
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	prefix, _, _ := strings.Cut(topic, ".")

	ctx, stop := context.WithCancel(t.Context())
	copies, ended := make(chan string, 1000), make(chan error, 1)
	go func() {
		ended <- operator.Tail(ctx, prefix+".>", func(topic string, msg *message.Message) error {
			copies <- topic + " " + driver.MessageID(msg)
			return nil
		})
	}()
	published := 0
	copied := func() {
		eventually(t, "a copy comes", func() bool {
			published++
			publish(t, transport, topic, itoa(published))
			select {
			case got := <-copies:
				require.Contains(t, got, topic+" ")
				return true
			default:
				return false
			}
		})
	}
	copied()
	b.closeConnections(t)
	for drained := false; !drained; {
		select {
		case <-copies:
		default:
			drained = true
		}
	}
	copied() // over the next connection
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)

	seen := make(map[string]bool)
	for len(seen) < published {
		seen[take(t, feed)] = true
	}
	require.ErrorIs(t, tailOnce(t, transport, operator, topic), errEnough)
	require.Error(t, operator.Tail(t.Context(), "order.>.paid", nil), "no pattern")
	closeAll(t, transport, operator)
	require.ErrorIs(t, operator.Tail(t.Context(), topic, nil), driver.ErrClosed)
}

var errEnough = errors.New("seen enough")

// tailOnce tails until the first copy.
func tailOnce(t *testing.T, transport driver.Transport, operator driver.Inspector, pattern string) (err error) {
	t.Helper()
	ended := make(chan error, 1)
	topic := pattern
	go func() {
		ended <- operator.Tail(t.Context(), pattern, func(string, *message.Message) error { return errEnough })
	}()
	eventually(t, "the tail ends", func() bool {
		_ = transport.Publish(t.Context(), topic, newMessage(topic, "tailed"))
		select {
		case err = <-ended:
			return true
		default:
			return false
		}
	})
	return err
}

func TestDiagnose_findsNoFaultOfAHealthyBroker(t *testing.T) {
	b := ownBroker(t)
	transport := open(t, b.url())
	group := unique("ledger")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{"order.paid.v1"}, Concurrency: 1, Order: driver.OrderedStrictly})
	publish(t, transport, "order.paid.v1", "a")
	for range 3 {
		for _, f := range transport.Diagnose(t.Context()) {
			require.NoError(t, f.Err, f.Check)
			require.NotEmpty(t, f.Text, f.Check)
		}
	}
	d := next(t, feed)
	require.Equal(t, 1, d.Attempt, "a diagnosis takes nothing out")
	ack(t, d)
	require.Contains(t, findingOf(t, transport.Diagnose(t.Context()), "group "+group).Text, "ordered strictly")
	closeAll(t, transport)
	require.ErrorIs(t, transport.Diagnose(t.Context())[0].Err, driver.ErrClosed)
}

func TestDiagnose_namesFaultsWithTheirFix(t *testing.T) {
	b := ownBroker(t)
	exchange := unique("events")
	transport := open(t, withOptions(b.url(), "exchange="+exchange))
	group := unique("ledger")
	subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{"order.paid.v1"}, Concurrency: 1})
	withBroker(t, b.url(), func(ch *rabbit.Channel) {
		_, err := ch.QueueDelete(group, false, false, false)
		require.NoError(t, err)
		_, err = ch.QueueDeclare(group, true, false, false, false, rabbit.Table{
			"x-queue-type": "classic", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": group + ".poison",
		})
		require.NoError(t, err)
	})
	f := findingOf(t, transport.Diagnose(t.Context()), "group "+group)
	require.ErrorContains(t, f.Err, "another x-queue-type: 'classic', and 'quorum' is wanted")
	require.Contains(t, f.Fix, "choose it with the option queue")

	deleteExchange(t, b.url(), exchange)
	withBroker(t, b.url(), func(ch *rabbit.Channel) {
		require.NoError(t, ch.ExchangeDeclare(exchange, "fanout", true, false, false, false, nil))
	})
	defer deleteExchange(t, b.url(), exchange)
	f = findingOf(t, transport.Diagnose(t.Context()), "exchange "+exchange)
	require.ErrorContains(t, f.Err, "it exists with another type")
	require.Contains(t, f.Fix, "choose another exchange")

	end := b.memoryAlarm(t)
	defer end()
	eventually(t, "the alarm is found", func() bool {
		f := findingOf(t, transport.Diagnose(t.Context()), "publish")
		return f.Err != nil && strings.Contains(f.Err.Error(), "low on memory")
	})
	require.Error(t, findingOf(t, transport.Diagnose(t.Context()), "group "+group).Err, "the rest is checked all the same")
	end()
	closeAll(t, transport)
}

func TestRights_errorsOfAUserWithoutAny(t *testing.T) {
	b, vhost, _ := managed(t)
	b.addUser(t, vhost, vhost, "^$", ".*", ".*")
	declaring := open(t, b.url()+vhost)
	restricted := open(t, "amqp://"+vhost+":secret@"+b.addr()+"/"+vhost+"?declare=false")

	require.ErrorContains(t, restricted.Tail(t.Context(), "order.>", nil), "no right to declare a queue")

	sub := driver.Subscription{Group: unique("ledger"), Topics: []string{"order.paid.v1"}, Concurrency: 1}
	subscribe(t, declaring, sub)
	require.NotEmpty(t, declaring.Diagnose(t.Context())) // makes what is shared
	subscribe(t, restricted, sub)
	for _, f := range restricted.Diagnose(t.Context()) {
		require.NoError(t, f.Err, f.Check)
	}

	b.setRights(t, vhost, vhost, "^$", "^leat[.].*$", "^leat[.].*$")
	findings := restricted.Diagnose(t.Context())
	require.ErrorContains(t, findingOf(t, findings, "publish").Err, "ACCESS_REFUSED")
	require.Contains(t, findingOf(t, findings, "publish").Fix, "amq.default")
	require.ErrorContains(t, findingOf(t, findings, "group "+sub.Group).Err, "may not read queue")
	for _, f := range findings {
		require.NotContains(t, fmt.Sprint(f), "secret@")
	}
	closeAll(t, declaring, restricted)
}

func TestGroups_ofAWatermillTopologyAreShown(t *testing.T) {
	_, _, raw := managed(t)
	broker := withOptions(raw, "topology=watermill")
	service, operator := open(t, broker), open(t, broker)
	group, paid, placed := unique("ledger"), unique("order.paid.v1"), unique("order.placed.v1")
	subscribe(t, service, driver.Subscription{Group: group, Topics: []string{paid, placed}, Concurrency: 1})
	publish(t, service, paid, "a")
	publish(t, service, placed, "b")
	eventually(t, "the group is known, with the messages of all its queues", func() bool {
		info := groupOf(t, operator, group)
		return len(info.Topics) == 2 && info.Waiting == 2
	})
	require.Equal(t, []string{group}, topicsOf(t, operator)[placed])
	leat := open(t, raw)
	require.Empty(t, groupOf(t, leat, group).Name, "it does not hang on the exchange")
	require.ErrorIs(t, tailOnce(t, service, operator, paid), errEnough)
	prefix, _, _ := strings.Cut(paid, ".")
	require.ErrorIs(t, operator.Tail(t.Context(), prefix+".unknown.>", nil), driver.ErrUnsupported)
	closeAll(t, service, operator, leat)
}

func groupOf(t testing.TB, inspector driver.Inspector, group string) driver.GroupInfo {
	t.Helper()
	groups, err := inspector.Groups(t.Context())
	require.NoError(t, err)
	for _, g := range groups {
		if g.Name == group {
			return g
		}
	}
	return driver.GroupInfo{}
}

func topicsOf(t testing.TB, inspector driver.Inspector) map[string][]string {
	t.Helper()
	topics, err := inspector.Topics(t.Context())
	require.NoError(t, err)
	byName := make(map[string][]string)
	for _, topic := range topics {
		byName[topic.Topic] = topic.Groups
	}
	return byName
}

func findingOf(t testing.TB, findings []driver.Finding, check string) driver.Finding {
	t.Helper()
	for _, f := range findings {
		if f.Check == check {
			return f
		}
	}
	t.Fatalf("no finding %q in %v", check, findings)
	return driver.Finding{}
}

func depth(t testing.TB, broker, queue string) (n int) {
	t.Helper()
	withBroker(t, broker, func(ch *rabbit.Channel) {
		for quick := false; n == 0 && !quick; { // RabbitMQ answers 0 also if a quorum queue takes longer than 250 ms
			began := time.Now()
			q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
			require.NoError(t, err)
			n, quick = q.Messages, time.Since(began) < 200*time.Millisecond
		}
	})
	return n
}
