package amqp_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
)

// forged returns headers that only leat writes, as a producer may have written them.
func forged(group, victim, topic string) rabbit.Table {
	return rabbit.Table{
		"leat-attempt": int32(7), "leat-crashes": int32(3), "leat-topic": "forged.topic.v1", "leat-queue": victim, "leat-key": victim,
		"leat-due": time.Now().Add(time.Hour).UnixMicro(), "leat-delay-to": "", "leat-delay-21": true,
		"leat-poison-id": "00000000-forged", "leat-poison-rev": int64(9), "leat-held-key": "k", "leat-held-place": int64(1), "leat-held-rev": int64(5),
		"leat-held-note": "parked", "leat-user-id": "admin", "leat-deaths": []any{rabbit.Table{"queue": group, "count": int64(50)}},
		"x-delivery-count": int64(40), "x-acquired-count": int64(40),
		"x-death":                  []any{rabbit.Table{"queue": victim, "reason": "expired", "exchange": "", "count": int64(1)}},
		driver.HeaderFaultFailedAt: "2020-01-01T00:00:00Z", driver.HeaderFaultFailures: "6", driver.HeaderFaultWaiting: "2020-01-01T00:00:00Z",
		driver.HeaderFaultError: "forged", driver.HeaderFaultStack: "forged", driver.HeaderFaultTrace: "forged", driver.HeaderInstance: "i-1", "leat_left_out": "forged",
		"leat-own": strings.Repeat("0", 32), "amqp_user_id": "admin",
		"leat-extra": `{"amqp_user_id":"YWRtaW4=","leat_instance":"aS0x","leat_fault_error":"Zm9yZ2Vk","plain":"eA==","CC":"eA=="}`,
		"leat-head":  "1-1", "leat-seq": "1-1", "leat-stamp": "1-1", "leat-name": "1-1", "leat-note": "drop", "leat-repeat": true,
		"plain": "theirs",
	}
}

// requireNotBelieved checks that nothing of that shows in a delivery but what any header could say.
func requireNotBelieved(t testing.TB, d *driver.Delivery, topic string) {
	t.Helper()
	require.Equal(t, topic, d.Topic)
	require.Zero(t, d.FailedSince)
	require.Zero(t, d.WaitingSince)
	require.Equal(t, "theirs", d.Message.Metadata["plain"])
	require.Equal(t, "x", d.Message.Metadata["CC"], "a name that no plain header can have")
	require.NotContains(t, d.Message.Metadata, driver.HeaderInstance)
	require.NotContains(t, d.Message.Metadata, "amqp_user_id")
	for name := range d.Message.Metadata {
		require.False(t, strings.HasPrefix(name, "leat"), "header %s", name)
	}
}

// Nobody who may only publish to the events exchange can forge what leat writes down for itself, on any way that the
// message takes.
func TestTrust_forgedHeadersOfProducersAreNotBelieved(t *testing.T) {
	broker := sharedBroker(t)
	for _, queue := range []string{"quorum", "classic"} {
		for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
			for _, entrance := range []string{"events", "leat.delay." + queue + ".publish.in.events"} {
				t.Run(queue+" "+order.String()+" "+entrance, func(t *testing.T) {
					t.Parallel()
					raw := withOptions(broker, "queue="+queue)
					transport := open(t, raw)
					group, topic, victim := unique("ledger"), unique("order.paid.v1"), unique("victim")
					feed := subscribe(t, transport, driver.Subscription{
						Group: group, Topics: []string{topic}, Concurrency: 2, Order: order, Park: order != driver.Unordered, Delays: []time.Duration{2 * time.Second},
					})
					withBroker(t, raw, func(ch *rabbit.Channel) {
						_, err := ch.QueueDeclare(victim, true, false, false, false, nil)
						require.NoError(t, err)
						defer func() { _, _ = ch.QueueDelete(victim, false, false, false) }()
						h := forged(group, victim, topic)
						delete(h, "leat-delay-21") // to the entrance for delays it is an order like any other
						h["ce_partitionkey"], h["cloudEvents_partitionkey"] = "k", "k"
						require.NoError(t, transport.Publish(t.Context(), topic, delayed(topic, "makes the entrance", time.Second)))
						require.Equal(t, "makes the entrance", take(t, feed))
						require.NoError(t, ch.PublishWithContext(t.Context(), entrance, topic, true, false, rabbit.Publishing{MessageId: "m", Headers: h}))
						for attempt, after := range []time.Duration{0, 2 * time.Second, 3 * time.Second} {
							d := next(t, feed)
							require.Equal(t, attempt+1, d.Attempt)
							requireNotBelieved(t, d, topic)
							require.NoError(t, d.Settler.Redeliver(after))
						}
						d := next(t, feed)
						require.Equal(t, 4, d.Attempt)
						requireNotBelieved(t, d, topic)
						fault := driver.NewFault(d, fmt.Errorf("bad"))
						require.NoError(t, d.Settler.Poison(t.Context(), fault))
						poison := transport.PoisonQueue(group)
						all, err := poison.List(t.Context(), "", 10)
						require.NoError(t, err)
						require.Len(t, all, 1)
						require.NotEqual(t, "00000000-forged", all[0].ID)
						require.Equal(t, "bad", all[0].Fault.Text)
						require.Empty(t, all[0].Fault.Stack)
						require.Empty(t, all[0].Fault.TraceID)
						_, err = poison.Replay(t.Context(), all[0].ID)
						require.NoError(t, err)
						d = next(t, feed)
						require.Equal(t, 1, d.Attempt)
						requireNotBelieved(t, d, topic)
						ack(t, d)
						q, err := ch.QueueDeclarePassive(victim, true, false, false, false, nil)
						require.NoError(t, err)
						require.Zero(t, q.Messages)
					})
					closeAll(t, transport)
				})
			}
		}
	}
}

// What the broker itself throws out into the poison queue has its producer's headers. They name no queue to replay to.
func TestTrust_deadLetteringLendsNone(t *testing.T) {
	raw := sharedBroker(t)
	transport := open(t, raw)
	group, topic, victim := unique("ledger"), unique("order.paid.v1"), unique("victim")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	withBroker(t, raw, func(ch *rabbit.Channel) {
		h := forged(group, victim, topic)
		h["x-death"] = []any{rabbit.Table{"queue": group, "reason": "rejected", "exchange": "", "count": int64(1), "routing-keys": []any{group}}}
		require.NoError(t, ch.PublishWithContext(t.Context(), "events", topic, true, false, rabbit.Publishing{MessageId: "m", Headers: h}))
		eventually(t, "it is in the queue", func() bool {
			d, ok, err := ch.Get(group, false)
			require.NoError(t, err)
			if ok {
				require.NoError(t, d.Reject(false)) // as a policy would
			}
			return ok
		})
	})
	poison := transport.PoisonQueue(group)
	var all []driver.PoisonedMessage
	eventually(t, "it is in the poison queue", func() (ok bool) {
		var err error
		all, err = poison.List(t.Context(), "", 10)
		require.NoError(t, err)
		return len(all) == 1
	})
	require.NotEqual(t, "00000000-forged", all[0].ID)
	require.Empty(t, all[0].Fault.Text)
	_, err := poison.Replay(t.Context(), all[0].ID)
	require.NoError(t, err)
	d := next(t, feed)
	require.Equal(t, 1, d.Attempt)
	ack(t, d)
	closeAll(t, transport)
}

// A message that says that this bus has published it is believed if this process has marked it.
func TestTrust_ownMessagesAreMarked(t *testing.T) {
	raw := sharedBroker(t)
	transport := open(t, raw)
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	msg := newMessage(topic, "ours")
	msg.Metadata[driver.HeaderInstance] = "i-1"
	require.NoError(t, transport.Publish(t.Context(), topic, msg))
	d := next(t, feed)
	require.Equal(t, "i-1", d.Message.Metadata[driver.HeaderInstance])
	require.NoError(t, d.Settler.Redeliver(time.Second))
	d = next(t, feed)
	require.Equal(t, "i-1", d.Message.Metadata[driver.HeaderInstance])
	ack(t, d)
	withBroker(t, raw, func(ch *rabbit.Channel) {
		q, err := ch.QueueDeclare("", false, true, true, false, nil)
		require.NoError(t, err)
		require.NoError(t, ch.QueueBind(q.Name, topic, "events", false, nil))
		again := newMessage(topic, "ours, too")
		again.Metadata[driver.HeaderInstance] = "i-1"
		require.NoError(t, transport.Publish(t.Context(), topic, again))
		copied, ok, err := ch.Get(q.Name, true)
		require.NoError(t, err)
		require.True(t, ok)
		d := next(t, feed)
		require.Equal(t, "i-1", d.Message.Metadata[driver.HeaderInstance])
		ack(t, d)
		mark := copied.Headers["leat-own"]
		require.NotEmpty(t, mark)
		require.NoError(t, ch.PublishWithContext(t.Context(), "events", topic, true, false, rabbit.Publishing{
			MessageId: "theirs", Headers: rabbit.Table{"leat-own": mark, driver.HeaderInstance: "i-1"},
		}))
	})
	d = next(t, feed)
	require.Equal(t, "theirs", driver.MessageID(d.Message))
	require.NotContains(t, d.Message.Metadata, driver.HeaderInstance)
	ack(t, d)
	closeAll(t, transport)
}

// step is a way that a message takes from one delivery to the next, as the broker would carry it.
type step struct {
	name string
	take func(d *rabbit.Delivery) *rabbit.Delivery
}

// TestTrust_countsNeverFall walks a message at random through all the ways that leat's copies take.
func TestTrust_countsNeverFall(t *testing.T) {
	const queue = "shop.ledger"
	arrive := func(p rabbit.Publishing, exchange, key string) *rabbit.Delivery {
		h := maps.Clone(p.Headers)
		return &rabbit.Delivery{
			Headers: h, Exchange: exchange, RoutingKey: key, MessageId: p.MessageId, Body: p.Body, Timestamp: p.Timestamp, UserId: p.UserId,
		}
	}
	died := func(d *rabbit.Delivery, in, exchange, key string) {
		before, _ := d.Headers["x-death"].([]any)
		d.Headers["x-death"] = append([]any{rabbit.Table{
			"queue": in, "reason": "expired", "exchange": exchange, "count": int64(1), "routing-keys": []any{key}, "time": time.Unix(1, 0),
		}}, before...)
		d.Headers["x-first-death-queue"], d.Headers["x-first-death-exchange"] = in, exchange
	}
	byRetryQueue := func(p rabbit.Publishing) *rabbit.Delivery {
		d := arrive(p, "", queue)
		died(d, queue+".retry.30s", "", queue+".retry.30s")
		return d
	}
	byLevels := func(p rabbit.Publishing) *rabbit.Delivery {
		d := arrive(p, "", queue)
		died(d, "leat.delay.quorum.redeliver.21", "leat.delay.quorum.redeliver.in", queue)
		died(d, "leat.delay.quorum.redeliver.03", "leat.delay.quorum.redeliver.03", queue)
		died(d, queue+".retry.1s", "leat.delay.quorum.redeliver.out", queue)
		return d
	}
	atOnce := func(p rabbit.Publishing) *rabbit.Delivery { return arrive(p, "", queue) }
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		h := rabbit.Table{"plain": "theirs"}
		if r.IntN(2) == 0 {
			h = forged(queue, "victim", "order.paid.v1")
		}
		d := &rabbit.Delivery{Headers: h, Exchange: "events", RoutingKey: "order.paid.v1", MessageId: "m", Timestamp: time.Unix(1, 0)}
		first := amqp.DecodeForTest(d, queue)
		require.Zero(t, first.Attempts)
		require.Zero(t, first.Crashes)
		attempts, failures := 0, 0
		var trail []string
		for range 12 {
			x := amqp.DecodeForTest(d, queue)
			require.GreaterOrEqual(t, x.Attempts, attempts, "seed %d: %v", seed, trail)
			require.GreaterOrEqual(t, x.History.Failures, failures, "seed %d: %v", seed, trail)
			require.Equal(t, "order.paid.v1", x.Topic, "seed %d: %v", seed, trail)
			attempts, failures = x.Attempts, x.History.Failures
			ways := []step{
				{"redelivery by the retry queue", func(d *rabbit.Delivery) *rabbit.Delivery {
					attempts, failures = attempts+1, failures+1
					return byRetryQueue(amqp.CopyForTest(d, queue, attempts, failures))
				}},
				{"redelivery by the levels", func(d *rabbit.Delivery) *rabbit.Delivery {
					attempts, failures = attempts+1, failures+1
					return byLevels(amqp.CopyForTest(d, queue, attempts, failures))
				}},
				{"given back", func(d *rabbit.Delivery) *rabbit.Delivery {
					return byLevels(amqp.CopyForTest(d, queue, attempts, failures))
				}},
				{"counted in a classic queue", func(d *rabbit.Delivery) *rabbit.Delivery {
					return atOnce(amqp.CopyForTest(d, queue, attempts, failures))
				}},
				{"taken back by the broker", func(d *rabbit.Delivery) *rabbit.Delivery {
					again := *d
					again.Headers, again.Redelivered = maps.Clone(d.Headers), true
					n, _ := again.Headers["x-delivery-count"].(int64)
					again.Headers["x-delivery-count"] = n + 1
					return &again
				}},
				{"by a shovel that writes to the default exchange", func(d *rabbit.Delivery) *rabbit.Delivery {
					if d.Exchange != "" {
						return d // its headers would be believed
					}
					again := *d
					again.Headers = maps.Clone(d.Headers)
					return &again
				}},
			}
			way := ways[r.IntN(len(ways))]
			trail = append(trail, way.name)
			d = way.take(d)
		}
	}
}

// What a foreign topology has dead-lettered before counts once, and is shown as it was.
func TestTrust_foreignDeathsCountOnce(t *testing.T) {
	d := &rabbit.Delivery{
		Exchange: "their.retries", RoutingKey: "order.paid.v1", MessageId: "m",
		Headers: rabbit.Table{"x-death": []any{rabbit.Table{"queue": "ledger", "reason": "rejected", "exchange": "events", "count": int64(2)}}},
	}
	x := amqp.DecodeForTest(d, "ledger")
	require.Equal(t, 2, x.Attempts)
	shown := x.Message.Metadata["x-death"]
	require.Contains(t, shown, `"count":2`)
	for range 2 {
		p := amqp.CopyForTest(d, "ledger", 3, 0)
		require.NotContains(t, p.Headers, "x-death")
		d = &rabbit.Delivery{RoutingKey: "ledger", MessageId: "m", Headers: p.Headers}
		x = amqp.DecodeForTest(d, "ledger")
		require.Equal(t, 3, x.Attempts)
		require.Equal(t, shown, x.Message.Metadata["x-death"])
	}
}

// No copy of a message from the events exchange carries what its producer has forged.
func TestTrust_copiesAreClean(t *testing.T) {
	d := &rabbit.Delivery{Headers: forged("ledger", "victim", "order.paid.v1"), Exchange: "events", RoutingKey: "order.paid.v1", MessageId: "m", UserId: "shop"}
	x := amqp.DecodeForTest(d, "ledger")
	for name := range x.Copy.Headers {
		switch name {
		case "leat-topic", "leat-extra", "leat-own", "leat-user-id", "leat-deaths", driver.HeaderInstance, "amqp_user_id", "plain":
		default:
			t.Errorf("header %s = %v", name, x.Copy.Headers[name])
		}
	}
	require.Equal(t, "order.paid.v1", x.Copy.Headers["leat-topic"])
	require.Equal(t, "shop", x.Copy.Headers["leat-user-id"])
	require.Equal(t, "shop", x.Message.Metadata["amqp_user_id"])
}
