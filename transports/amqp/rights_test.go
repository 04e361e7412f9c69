//go:build unix

package amqp_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// The rights that the package's documentation names suffice for everything that a service does.
func TestRights_documentedOnesSuffice(t *testing.T) {
	b := ownBroker(t)
	service := strings.ReplaceAll(unique("shop"), ".", "")
	b.ctl(t, "add_user", service, "secret")
	t.Cleanup(func() { b.ctl(t, "delete_user", service) })
	own := `events|leat\..*|` + service + `\..*`
	b.ctl(t, "set_permissions", service, "^("+own+")$", "^("+own+`|amq\.default)$`, "^("+own+")$")
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

// A delayed message that a process may not publish goes back, for one that may.
func TestDelays_goBackForAProcessThatMayPublishThem(t *testing.T) {
	b := ownBroker(t)
	bothQueues(t, b.url(), func(t *testing.T, raw string) { delaysGoBack(t, b, raw) })
}

func delaysGoBack(t *testing.T, b *broker, raw string) {
	service := strings.ReplaceAll(unique("shop"), ".", "")
	b.ctl(t, "add_user", service, "secret")
	t.Cleanup(func() { b.ctl(t, "delete_user", service) })
	own := `events|leat\..*|` + service + `\..*`
	b.ctl(t, "set_permissions", service, "^("+own+")$", "^("+own+`|amq\.default)$`, "^("+own+")$")
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.User = url.UserPassword(service, "secret")
	restricted := open(t, u.String())
	exchange := unique("orders")
	other := open(t, withOptions(raw, "exchange="+exchange))
	defer deleteExchange(t, b.url(), exchange)
	topic := unique("order.paid.v1")
	feed := subscribe(t, other, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 4})
	shop := subscribe(t, restricted, driver.Subscription{Group: service + ".g", Topics: []string{topic}, Concurrency: 1})
	const n = 10
	for i := range n {
		msg := newMessage(topic, itoa(i))
		msg.Metadata[driver.HeaderDeliverAt] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
		require.NoError(t, other.Publish(t.Context(), topic, msg))
	}
	got := make(map[string]bool)
	for i := 0; len(got) < n; i++ {
		got[take(t, feed)] = true
		publish(t, restricted, topic, itoa(i))
		require.Equal(t, itoa(i), take(t, shop))
	}
	closeAll(t, restricted, other)
}
