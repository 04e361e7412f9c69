//go:build unix

package amqp_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// So do those for a service that consumes and makes nothing: it can read nobody's delayed messages.
func TestRights_consumersThatMakeNothing(t *testing.T) {
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) { consumeMakingNothing(t, order) })
	}
}

func consumeMakingNothing(t *testing.T, order driver.Order) {
	b := calmBroker(t)
	service := strings.ReplaceAll(unique("shop"), ".", "")
	topic := unique("order.paid.v1")
	sub := driver.Subscription{
		Group: service + ".ledger", Topics: []string{topic}, Concurrency: 4, Delays: []time.Duration{2 * time.Second}, Order: order, Park: order != driver.Unordered,
	}
	maker := open(t, b.url())
	subscribe(t, maker, sub)
	require.NotEmpty(t, maker.Diagnose(t.Context())) // makes what is shared
	closeAll(t, maker)
	addDocumentedUser(t, b, "/", service, "shop-fixed")
	u, err := url.Parse(b.url())
	require.NoError(t, err)
	u.User = url.UserPassword(service, "secret")
	transport := open(t, withOptions(u.String(), "declare=false"))
	feed := subscribe(t, transport, sub)
	msg := delayed(topic, "m", time.Second)
	msg.Metadata[driver.HeaderPartitionKey] = "a"
	require.NoError(t, transport.Publish(t.Context(), topic, msg))
	d := next(t, feed)
	for _, after := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second} {
		began := time.Now()
		require.NoError(t, d.Settler.Redeliver(after))
		d = next(t, feed)
		require.GreaterOrEqual(t, time.Since(began), after, "else the redelivery was refused, and the message came again at once")
	}
	require.Equal(t, 4, d.Attempt)
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
	poison := transport.PoisonQueue(sub.Group)
	all, err := poison.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, all, 1)
	_, err = poison.Replay(t.Context(), all[0].ID)
	require.NoError(t, err)
	require.Equal(t, "m", take(t, feed))
	for _, f := range transport.Diagnose(t.Context()) {
		if f.Check == "group "+sub.Group || !strings.HasPrefix(f.Check, "group ") {
			require.NoError(t, f.Err, f.Check)
		}
	}
	require.Zero(t, transport.Health().Reconnects)
	withBroker(t, u.String(), func(ch *rabbit.Channel) {
		_, err := ch.Consume("leat.delay.quorum.publish.00.events", "", true, false, false, false, nil)
		require.ErrorContains(t, err, "refused")
	})
	closeAll(t, transport)
}

// The rights that the package's documentation names suffice for everything that a service does.
func TestRights_documentedOnesSuffice(t *testing.T) {
	b := calmBroker(t)
	service := strings.ReplaceAll(unique("shop"), ".", "")
	addDocumentedUser(t, b, "/", service, "shop")
	u, err := url.Parse(b.url())
	require.NoError(t, err)
	u.User = url.UserPassword(service, "secret")
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		transport := open(t, u.String())
		topic, group := unique("order.paid.v1"), service+"."+unique("ledger")
		feed := subscribe(t, transport, driver.Subscription{
			Group: group, Topics: []string{topic}, Concurrency: 4, Order: order, Park: order != driver.Unordered,
		})
		msg := newMessage(topic, "later")
		msg.Metadata[driver.HeaderPartitionKey] = "a"
		msg.Metadata[driver.HeaderDeliverAt] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
		require.NoError(t, transport.Publish(t.Context(), topic, msg))
		d := next(t, feed)
		require.NoError(t, d.Settler.Redeliver(time.Second))
		d = next(t, feed)
		require.Equal(t, 2, d.Attempt)
		require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
		queue := transport.PoisonQueue(group)
		for range 4 { // and it is written anew
			all, err := queue.List(t.Context(), "", 10)
			require.NoError(t, err)
			require.Len(t, all, 1)
		}
		all, err := queue.List(t.Context(), "", 10)
		require.NoError(t, err)
		_, err = queue.Replay(t.Context(), all[0].ID)
		require.NoError(t, err)
		require.Equal(t, "later", take(t, feed))
		eventually(t, "the group is known", func() bool {
			groups, err := transport.Groups(t.Context())
			require.NoError(t, err)
			for _, g := range groups {
				if g.Name == group {
					return true
				}
			}
			return false
		})
		for _, f := range transport.Diagnose(t.Context()) {
			if f.Check != "group "+group && strings.HasPrefix(f.Check, "group ") {
				continue // another service's, which this user may not read
			}
			require.NoError(t, f.Err, f.Check)
		}
		closeAll(t, transport)
	}
}
