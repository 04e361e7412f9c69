//go:build unix

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
)

// A group whose queue somebody has made anew with other arguments keeps its process from consuming it, and from
// nothing else.
func TestPublisher_publishesBesideAGroupInConflict(t *testing.T) {
	b := ownBroker(t)
	transport := open(t, b.url())
	bad, good, topic := unique("bad"), unique("good"), unique("order.paid.v1")
	subscribe(t, transport, driver.Subscription{Group: bad, Topics: []string{unique("other.v1")}, Concurrency: 1})
	feed := subscribe(t, transport, driver.Subscription{Group: good, Topics: []string{topic}, Concurrency: 1})
	withBroker(t, b.url(), func(ch *rabbit.Channel) {
		_, err := ch.QueueDelete(bad, false, false, false)
		require.NoError(t, err)
		_, err = ch.QueueDeclare(bad, true, false, false, false, rabbit.Table{
			"x-queue-type": "quorum", "x-delivery-limit": 1 << 30, "x-dead-letter-exchange": "",
			"x-dead-letter-routing-key": bad + ".poison", "x-single-active-consumer": true,
		})
		require.NoError(t, err)
	})
	b.closeConnections(t)
	eventually(t, "it is connected again", func() bool { return transport.Health().Reconnects >= 2 && transport.Health().Connected })
	publish(t, transport, topic, "a")
	d := next(t, feed)
	require.NoError(t, d.Settler.Redeliver(time.Second))
	d = next(t, feed)
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
	closeAll(t, transport)
}

// A broker that negotiates smaller frames than leat asks for gets no headers that burst them.
func TestPublisher_keepsToTheNegotiatedFrame(t *testing.T) {
	b := ownBroker(t)
	defer b.setting(t, "frame_max", "32768")()
	transport := open(t, b.url())
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 1})
	msg := newMessage(topic, "big")
	msg.Metadata["large"] = strings.Repeat("x", 60_000)
	err := transport.Publish(t.Context(), topic, msg)
	require.ErrorContains(t, err, "message big has 60")
	require.ErrorContains(t, err, "put large data into the payload")
	msg.Metadata["large"] = strings.Repeat("x", 15_000)
	require.NoError(t, transport.Publish(t.Context(), topic, msg))
	d := next(t, feed)
	fault := driver.NewFault(d, errors.New("bad"))
	fault.Stack = strings.Repeat("stack\n", 5000)
	require.NoError(t, d.Settler.Poison(t.Context(), fault))
	require.Zero(t, transport.Health().Reconnects)
	closeAll(t, transport)
}

// A message that the broker refuses fails alone: what others publish meanwhile is published.
func TestPublisher_failsARefusedMessageAlone(t *testing.T) {
	b := ownBroker(t)
	defer b.setting(t, "max_message_size", "100000")()
	transport := open(t, b.url())
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 8})
	large := func() *message.Message {
		msg := newMessage(topic, "large")
		msg.Payload = make([]byte, 200_000)
		return msg
	}
	ctx, stop := context.WithCancel(t.Context())
	var bad, innocent sync.WaitGroup
	bad.Go(func() {
		for ctx.Err() == nil {
			if err := transport.Publish(ctx, topic, large()); ctx.Err() == nil && (err == nil || !strings.Contains(err.Error(), "the broker refuses it")) {
				t.Errorf("the large one: %v", err)
			}
		}
	})
	const callers, each = 4, 100
	for c := range callers {
		innocent.Go(func() {
			for i := range each {
				if err := transport.Publish(t.Context(), topic, newMessage(topic, fmt.Sprintf("%d/%d", c, i))); err != nil {
					t.Errorf("an innocent one: %v", err)
				}
			}
		})
	}
	innocent.Wait()
	stop()
	bad.Wait()
	got := make(map[string]bool)
	for len(got) < callers*each {
		got[take(t, feed)] = true
	}
	// In one call, too.
	err := transport.Publish(t.Context(), topic, newMessage(topic, "x"), large(), newMessage(topic, "y"))
	require.ErrorContains(t, err, "1 of 3")
	require.ErrorContains(t, err, "the broker refuses it")
	eventually(t, "the others come", func() bool {
		got[take(t, feed)] = true
		return got["x"] && got["y"]
	})
	require.Zero(t, transport.Health().Reconnects)
	closeAll(t, transport)
}

// A message whose headers fill a frame is redelivered and poisoned all the same: the largest foreign headers are
// left out, and the record names them.
func TestPoison_leavesOutHeadersThatDoNotFit(t *testing.T) {
	broker := sharedBroker(t)
	transport := open(t, broker)
	topic, group := unique("order.paid.v1"), unique("ledger")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	withBroker(t, broker, func(ch *rabbit.Channel) {
		require.NoError(t, ch.PublishWithContext(t.Context(), "events", topic, true, false, rabbit.Publishing{
			MessageId: "full", Type: topic, Body: []byte("not json"),
			Headers: rabbit.Table{
				"cloudEvents:id": "full", "cloudEvents:type": topic, "cloudEvents:source": "/test",
				"huge": strings.Repeat("x", 70_300), "large": strings.Repeat("y", 55_000), "small": strings.Repeat("z", 5_000),
			},
		}))
	})
	d := next(t, feed)
	require.NoError(t, d.Settler.Redeliver(time.Second))
	d = next(t, feed)
	require.Equal(t, "full", driver.MessageID(d.Message))
	require.Equal(t, 2, d.Attempt)
	fault := driver.NewFault(d, errors.New("bad"))
	fault.Stack = strings.Repeat("stack\n", 10_000)
	require.NoError(t, d.Settler.Poison(t.Context(), fault))
	publish(t, transport, topic, "next")
	require.Equal(t, "next", take(t, feed))
	all, err := transport.PoisonQueue(group).List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, all, 1)
	record := all[0].Message.Metadata
	require.Equal(t, "not json", string(all[0].Message.Payload))
	require.Equal(t, strings.Repeat("z", 5_000), record["small"])
	require.Equal(t, strings.Repeat("y", 55_000), record["large"])
	require.NotContains(t, record, "huge")
	require.Contains(t, record["leat_left_out"], "huge (70300 bytes)")
	require.Zero(t, transport.Health().Reconnects)
	closeAll(t, transport)
}
