//go:build unix

package amqp_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// policy sets one for the queues that match, until the test ends.
func policy(t testing.TB, b *broker, vhost, pattern, definition string) {
	t.Helper()
	t.Cleanup(b.policy(t, "policies", vhost, "leat-test", pattern, definition))
}

const lowLimit = `{"delivery-limit":3}`

// However often operators look into a poison queue, a delivery limit deletes nothing from it.
func TestPolicy_deliveryLimitSparesWhatIsLookedAt(t *testing.T) {
	b, vhost, raw := managed(t)
	policy(t, b, vhost, ".*", lowLimit)
	transport := open(t, raw)
	topic, group := unique("order.paid.v1"), unique("ledger")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	const n = 10
	for i := range n {
		publish(t, transport, topic, itoa(i))
		d := next(t, feed)
		require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
	}
	queue := transport.PoisonQueue(group)
	var first []driver.PoisonedMessage
	for look := range 10 {
		all, err := queue.List(t.Context(), "", 100)
		require.NoError(t, err)
		require.Len(t, all, n, "look %d", look)
		if first == nil {
			first = all
		}
		for i := range all {
			require.Equal(t, first[i].ID, all[i].ID)
			require.Equal(t, first[i].Message.Metadata, all[i].Message.Metadata)
		}
		one, err := queue.Get(t.Context(), all[look%n].ID)
		require.NoError(t, err)
		require.Equal(t, all[look%n].ID, one.ID)
		groups, err := transport.Groups(t.Context())
		require.NoError(t, err)
		require.Condition(t, func() bool {
			for _, g := range groups {
				if g.Name == group {
					return g.Poisoned == n
				}
			}
			return false
		}, "the group is known, %d are poisoned", n)
	}
	for _, p := range first {
		_, err := queue.Replay(t.Context(), p.ID)
		require.NoError(t, err)
		require.Equal(t, p.Message.UUID, take(t, feed))
	}
	closeAll(t, transport)
}

// However long a message of an ordered group waits, a delivery limit deletes neither it nor what is parked.
func TestPolicy_deliveryLimitSparesWhatWaits(t *testing.T) {
	b, vhost, raw := managed(t)
	policy(t, b, vhost, ".*", lowLimit)
	transport := open(t, raw)
	topic, group := unique("order.paid.v1"), unique("ledger")
	sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey, Park: true}
	feed := subscribe(t, transport, sub)
	publishKeyed(t, transport, topic, "k/1", "j/1")
	due := time.Now().Add(10 * time.Second)
	for range 2 {
		d := next(t, feed)
		if driver.MessageID(d.Message) == "k/1" {
			require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
		} else {
			require.NoError(t, d.Settler.Redeliver(time.Until(due)))
		}
	}
	publishKeyed(t, transport, topic, "k/2", "k/3", "k/4", "k/5", "j/2", "j/3")
	const held = 5 + 3
	awaitHeld(t, transport, 5, 3, due)
	queue := transport.PoisonQueue(group)
	all, err := queue.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, all, 1)
	_, err = queue.Replay(t.Context(), all[0].ID)
	require.NoError(t, err)
	last := map[string]int{}
	for range held {
		id := take(t, feed)
		key, number, _ := strings.Cut(id, "/")
		last[key]++
		require.Equal(t, fmt.Sprint(last[key]), number)
	}
	closeAll(t, transport)
}

// A look that loses messages says so.
func TestPolicy_aLookThatLosesMessagesSaysSo(t *testing.T) {
	b, vhost, raw := managed(t)
	transport := open(t, raw)
	topic, group := unique("order.paid.v1"), unique("ledger")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 1})
	publish(t, transport, topic, "a")
	d := next(t, feed)
	require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
	policy(t, b, vhost, ".*", `{"delivery-limit":0}`)
	_, err := transport.PoisonQueue(group).List(t.Context(), "", 10)
	require.ErrorContains(t, err, "0 of 1")
	require.ErrorContains(t, err, "delivery-limit")
	closeAll(t, transport)
}
