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
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

func TestGroupsAreKnownToEveryProcess(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	for _, options := range []string{"queue=quorum", "queue=classic"} {
		t.Run(options, func(t *testing.T) {
			raw := withOptions(broker, options)
			service, operator := open(t, raw), open(t, broker) // of another type of queues, in one of the cases
			group, topic, pattern := unique("ledger"), unique("order.paid.v1"), unique("order.>")
			sub := driver.Subscription{Group: group, Topics: []string{topic, pattern}, Concurrency: 1}
			feed := subscribe(t, service, sub)
			publish(t, service, topic, "bad", "a", "b", "c")
			d := next(t, feed)
			require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("broken"))))

			var info driver.GroupInfo
			eventually(t, "the group is known", func() bool {
				info = groupOf(t, operator, group)
				return info.Name != "" && info.Poisoned == 1 && info.Consumers == 1
			})
			require.ElementsMatch(t, []string{topic, pattern}, info.Topics)
			require.Equal(t, driver.Unknown, info.InFlight)
			require.Equal(t, []string{group}, topicsOf(t, operator)[topic])
			require.Equal(t, []string{group}, topicsOf(t, operator)[pattern])

			closeAll(t, service)
			eventually(t, "its messages wait", func() bool {
				info = groupOf(t, operator, group)
				return info.Waiting == 3 && info.Consumers == 0
			})
			heir := open(t, raw)
			feed = subscribe(t, heir, sub)
			for range 3 {
				d := next(t, feed)
				require.LessOrEqual(t, d.Attempt, 2, "looking at a group takes nothing out; its consumer's end counts once")
				ack(t, d)
			}
			closeAll(t, heir, operator)
		})
	}
}

func TestTheLeaderOfAnOrderedGroupIsCounted(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	service, operator := open(t, broker), open(t, broker)
	group := unique("ledger")
	feed := subscribe(t, service, driver.Subscription{Group: group, Topics: []string{unique("order.paid.v1")}, Concurrency: 1, Order: driver.OrderedByKey})
	eventually(t, "the group is known", func() bool { return groupOf(t, operator, group).Name != "" })
	require.Zero(t, groupOf(t, operator, group).Consumers)
	ctx, stop := context.WithCancel(t.Context())
	var consuming sync.WaitGroup
	consuming.Go(func() { _, _ = feed.Next(ctx) })
	eventually(t, "it is counted", func() bool { return groupOf(t, operator, group).Consumers == 1 })
	require.Zero(t, groupOf(t, operator, group).Parked)
	stop()
	consuming.Wait()
	closeAll(t, service, operator)
}

func TestAGroupIsKnownWithTheTopicsOfAllItsVersions(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	before, after, operator := open(t, broker), open(t, broker), open(t, broker)
	group, kept, gone, added := unique("ledger"), unique("kept.v1"), unique("gone.v1"), unique("added.v1")
	subscribe(t, before, driver.Subscription{Group: group, Topics: []string{kept, gone}, Concurrency: 1})
	eventually(t, "the group is known", func() bool { return groupOf(t, operator, group).Name != "" })
	subscribe(t, after, driver.Subscription{Group: group, Topics: []string{kept, added}, Concurrency: 1})
	closeAll(t, before, after)
	require.ElementsMatch(t, []string{kept, gone, added}, groupOf(t, operator, group).Topics, "what was bound stays bound")
	f := findingOf(t, operator.Diagnose(t.Context()), "group "+group)
	require.NoError(t, f.Err)
	require.Contains(t, f.Text, gone+" may still be bound")
	closeAll(t, operator)
}

// The doctor names queues of delays that the retry policy had before, as long as they are there.
func TestDiagnose_namesRetryQueuesOfFormerDelays(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	before, after, operator := open(t, broker), open(t, broker), open(t, broker)
	sub := driver.Subscription{Group: unique("ledger"), Topics: []string{unique("order.paid.v1")}, Concurrency: 1}
	sub.Delays = []time.Duration{5 * time.Second, 90 * time.Minute}
	subscribe(t, before, sub)
	eventually(t, "the group is known", func() bool { return groupOf(t, operator, sub.Group).Name != "" })
	require.NotContains(t, findingOf(t, operator.Diagnose(t.Context()), "group "+sub.Group).Text, ".retry.")
	sub.Delays = []time.Duration{5 * time.Second, time.Minute}
	subscribe(t, after, sub)
	closeAll(t, before, after)
	for range 2 {
		f := findingOf(t, operator.Diagnose(t.Context()), "group "+sub.Group)
		require.NoError(t, f.Err)
		require.Contains(t, f.Text, "queue "+sub.Group+".retry.1h30m with 0 messages is of a delay that the retry policy")
		require.NotContains(t, f.Text, ".retry.5s")
	}
	deleteQueue(t, broker, sub.Group+".retry.1h30m")
	require.NotContains(t, findingOf(t, operator.Diagnose(t.Context()), "group "+sub.Group).Text, ".retry.")
	closeAll(t, operator)
}

// A note that can't be a group's keeps nobody from seeing the others.
func TestGroups_areSeenBesideANoteThatIsNone(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	service, operator := open(t, broker), open(t, broker)
	group := unique("ledger")
	subscribe(t, service, driver.Subscription{Group: group, Topics: []string{unique("order.paid.v1")}, Concurrency: 1})
	eventually(t, "the group is known", func() bool { return groupOf(t, operator, group).Name != "" })
	withBroker(t, broker, func(ch *rabbit.Channel) {
		for _, note := range []string{
			`{"group":"` + strings.Repeat("x", 300) + `","topics":["a"],"order":"unordered","exchange":"events"}`,
			`{"group":"g","topics":["` + strings.Repeat("y", 300) + `"],"order":"unordered","exchange":"events"}`, `[]`, `no json`,
		} {
			require.NoError(t, ch.PublishWithContext(t.Context(), "", "leat.groups.quorum", true, false, rabbit.Publishing{Body: []byte(note)}))
		}
	})
	for range 2 {
		require.Equal(t, group, groupOf(t, operator, group).Name)
		require.NoError(t, findingOf(t, operator.Diagnose(t.Context()), "group "+group).Err)
	}
	closeAll(t, service, operator)
}

func TestAGroupThatIsDeletedIsForgottenUntilItComesAgain(t *testing.T) {
	broker := testenv.RabbitMQ(t)
	service, operator := open(t, broker), open(t, broker)
	group, topic := unique("ledger"), unique("order.paid.v1")
	feed := subscribe(t, service, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	eventually(t, "the group is known", func() bool { return groupOf(t, operator, group).Name != "" })
	deleteQueue(t, broker, group)
	require.Empty(t, groupOf(t, operator, group).Name)
	publishNobodyWants(t, service, topic)

	waiting, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { // consuming makes the queue
		defer close(ended)
		_, _ = feed.Next(waiting)
	}()
	eventually(t, "it is made by the consumer", func() bool { return groupOf(t, service, group).Consumers == 1 })
	deleteQueue(t, broker, group)
	eventually(t, "it is known again to others", func() bool { return groupOf(t, operator, group).Consumers == 1 })
	stop()
	<-ended
	closeAll(t, service, operator)
}

func TestTheRegistryStaysShort(t *testing.T) {
	b := ownBroker(t)
	operator := open(t, b.url())
	group := unique("ledger")
	for i := range 40 {
		service := open(t, b.url())
		subscribe(t, service, driver.Subscription{Group: group, Topics: []string{"same.v1"}, Concurrency: 1})
		subscribe(t, service, driver.Subscription{Group: fmt.Sprintf("%s-%d", group, i), Topics: []string{"same.v1"}, Concurrency: 1})
		closeAll(t, service)
		if i < 39 {
			deleteQueue(t, b.url(), fmt.Sprintf("%s-%d", group, i))
		}
	}
	require.GreaterOrEqual(t, depth(t, b.url(), "leat.groups.quorum"), 80, "every start leaves its notes")
	require.Equal(t, group, groupOf(t, operator, group).Name)
	mine := 0
	groups, err := operator.Groups(t.Context())
	require.NoError(t, err)
	for _, g := range groups {
		if strings.HasPrefix(g.Name, group) {
			mine++
		}
	}
	require.Equal(t, 2, mine)
	eventually(t, "one note is left for each group", func() bool { return depth(t, b.url(), "leat.groups.quorum") <= len(groups)+1 })
	closeAll(t, operator)
}

func TestATailIsACopyAndStealsNothing(t *testing.T) {
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
	b.ctl(t, "close_all_connections", "testing")
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

func TestDiagnoseFindsAHealthyBrokerHealthy(t *testing.T) {
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

func TestDiagnoseNamesWhatIsWrongAndTheCure(t *testing.T) {
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
	require.ErrorContains(t, f.Err, "it is there with another type")
	require.Contains(t, f.Fix, "choose another exchange")

	b.ctl(t, "set_vm_memory_high_watermark", "0.0001")
	defer b.ctl(t, "set_vm_memory_high_watermark", "0.4")
	f = findingOf(t, transport.Diagnose(t.Context()), "publish")
	require.ErrorContains(t, f.Err, "low on memory")
	require.NotEmpty(t, findingOf(t, transport.Diagnose(t.Context()), "registry of groups leat.groups.*").Text, "the rest is checked all the same")
	b.ctl(t, "set_vm_memory_high_watermark", "0.4")
	closeAll(t, transport)
}

func TestAUserWithoutRightsGetsClearAnswers(t *testing.T) {
	b := ownBroker(t)
	vhost := strings.ReplaceAll(unique("v"), ".", "")
	b.ctl(t, "add_vhost", vhost)
	defer b.ctl(t, "delete_vhost", vhost)
	b.ctl(t, "set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
	b.ctl(t, "add_user", vhost, "secret")
	defer b.ctl(t, "delete_user", vhost)
	b.ctl(t, "set_permissions", "-p", vhost, vhost, "^$", ".*", ".*")
	declaring := open(t, b.url()+vhost)
	restricted := open(t, "amqp://"+vhost+":secret@"+b.addr()+"/"+vhost+"?declare=false")

	_, err := restricted.Groups(t.Context())
	require.ErrorContains(t, err, "the queue by which groups are known is not there, and declare=false")
	f := findingOf(t, restricted.Diagnose(t.Context()), "registry of groups leat.groups.*")
	require.ErrorContains(t, f.Err, "declare=false")
	require.NotEmpty(t, f.Fix)
	require.ErrorContains(t, restricted.Tail(t.Context(), "order.>", nil), "no right to make a queue")

	group := unique("ledger")
	subscribe(t, declaring, driver.Subscription{Group: group, Topics: []string{"order.paid.v1"}, Concurrency: 1})
	eventually(t, "the group is known", func() bool {
		groups, err := restricted.Groups(t.Context())
		return err == nil && len(groups) == 1 && groups[0].Name == group
	})
	for _, f := range restricted.Diagnose(t.Context()) {
		require.NoError(t, f.Err, f.Check)
	}

	b.ctl(t, "set_permissions", "-p", vhost, vhost, "^$", "^leat[.].*$", "^leat[.].*$")
	findings := restricted.Diagnose(t.Context())
	require.ErrorContains(t, findingOf(t, findings, "publish").Err, "ACCESS_REFUSED")
	require.Contains(t, findingOf(t, findings, "publish").Fix, "amq.default")
	require.ErrorContains(t, findingOf(t, findings, "group "+group).Err, "may not read queue")
	for _, f := range findings {
		require.NotContains(t, fmt.Sprint(f), "secret@")
	}
	closeAll(t, declaring, restricted)
}

func TestGroupsOfAWatermillTopologyAreShown(t *testing.T) {
	broker := withOptions(testenv.RabbitMQ(t), "topology=watermill")
	service, operator := open(t, broker), open(t, broker)
	group, paid, placed := unique("ledger"), unique("order.paid.v1"), unique("order.placed.v1")
	t.Cleanup(func() {
		deleteExchange(t, broker, paid)
		deleteExchange(t, broker, placed)
	})
	subscribe(t, service, driver.Subscription{Group: group, Topics: []string{paid, placed}, Concurrency: 1})
	publish(t, service, paid, "a")
	publish(t, service, placed, "b")
	eventually(t, "the group is known, with the messages of all its queues", func() bool {
		info := groupOf(t, operator, group)
		return len(info.Topics) == 2 && info.Waiting == 2
	})
	require.Equal(t, []string{group}, topicsOf(t, operator)[placed])
	leat := open(t, testenv.RabbitMQ(t))
	require.Empty(t, groupOf(t, leat, group).Name, "it does not hang on the exchange")
	require.ErrorIs(t, tailOnce(t, service, operator, paid), errEnough)
	prefix, _, _ := strings.Cut(paid, ".")
	require.ErrorIs(t, operator.Tail(t.Context(), prefix+".unknown.>", nil), driver.ErrUnsupported)
	for _, f := range operator.Diagnose(t.Context()) {
		if strings.HasSuffix(f.Check, group) {
			require.NoError(t, f.Err)
		}
	}
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
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		require.NoError(t, err)
		n = q.Messages
	})
	return n
}

func publishNobodyWants(t testing.TB, transport *amqp.Transport, topic string) {
	t.Helper()
	require.ErrorIs(t, transport.Publish(t.Context(), topic, newMessage(topic, "nobody's")), driver.ErrUnroutable)
}
