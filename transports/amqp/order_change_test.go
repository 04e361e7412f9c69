//go:build unix

package amqp_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// A group that was ordered and is not any more gets what waited in its order, and what is replayed.
func TestOrderChange_unorderedGroupGetsWhatWasHeld(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4, Order: driver.OrderedByKey, Park: true}
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "k/1", "j/1", "i/1")
		began := time.Now()
		for range 3 {
			switch d := next(t, feed); driver.MessageID(d.Message) {
			case "j/1":
				require.NoError(t, d.Settler.Redeliver(10*time.Second))
			default:
				require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
			}
		}
		publishKeyed(t, first, topic, "k/2", "k/3")
		awaitHeld(t, first, 4, 1, began.Add(10*time.Second))
		closeAll(t, first)
		deleteQueue(t, raw, group)

		second := open(t, raw)
		sub.Order, sub.Park = driver.Unordered, false
		feed = subscribe(t, second, sub)
		var said driver.Finding
		eventually(t, "the doctor knows the group", func() bool {
			for _, f := range second.Diagnose(t.Context()) {
				if f.Check == "group "+group {
					said = f
				}
			}
			return said.Check != ""
		})
		require.ErrorContains(t, said.Err, "are parked")
		require.NotEmpty(t, said.Fix)
		var got []string
		for range 3 {
			d := next(t, feed)
			got = append(got, driver.MessageID(d.Message))
			if driver.MessageID(d.Message) == "j/1" {
				require.Equal(t, 2, d.Attempt)
				require.GreaterOrEqual(t, time.Since(began), 10*time.Second, "its time was forgotten")
			}
			ack(t, d)
		}
		require.ElementsMatch(t, []string{"k/2", "k/3", "j/1"}, got)

		queue := second.PoisonQueue(group)
		all, err := queue.List(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, all, 2)
		for _, p := range all {
			if driver.MessageID(p.Message) == "k/1" {
				n, err := queue.Replay(t.Context(), p.ID)
				require.NoError(t, err)
				require.Equal(t, 1, n)
				require.Equal(t, "k/1", take(t, feed))
			}
		}
		for _, name := range []string{".parked.1a", ".parked.1b", ".keys"} {
			deleteQueue(t, raw, group+name)
		}
		for _, p := range all {
			if driver.MessageID(p.Message) == "i/1" {
				n, err := queue.Drop(t.Context(), p.ID)
				require.NoError(t, err)
				require.Equal(t, 1, n)
			}
		}
		for _, f := range second.Diagnose(t.Context()) {
			require.False(t, f.Check == "group "+group && f.Err != nil, "%v", f.Err)
		}
		closeAll(t, second)
	})
}

// One that was not ordered and is now can replay what was poisoned before.
func TestOrderChange_orderedGroupReplaysWhatWasPoisonedBefore(t *testing.T) {
	bothQueues(t, sharedBroker(t), func(t *testing.T, raw string) {
		topic, group := unique("order.paid.v1"), unique("ledger")
		sub := driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: 4}
		first := open(t, raw)
		feed := subscribe(t, first, sub)
		publishKeyed(t, first, topic, "k/1")
		d := next(t, feed)
		require.NoError(t, d.Settler.Poison(t.Context(), driver.NewFault(d, errors.New("bad"))))
		closeAll(t, first)
		deleteQueue(t, raw, group)
		second := open(t, raw)
		sub.Order, sub.Park = driver.OrderedByKey, true
		feed = subscribe(t, second, sub)
		queue := second.PoisonQueue(group)
		all, err := queue.List(t.Context(), "", 10)
		require.NoError(t, err)
		n, err := queue.Replay(t.Context(), all[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, "k/1", take(t, feed))
		closeAll(t, second)
	})
}
