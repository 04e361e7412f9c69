package transporttest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testRemove tests transports that are a [driver.GroupRemover].
func testRemove(t *testing.T, h Harness) {
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) {
			w := newWorld(t, h)
			operator := w.operator()
			remover, ok := operator.(driver.GroupRemover)
			require.True(t, ok || !operator.Capabilities().Durable, "a durable transport is a driver.GroupRemover")
			if !ok {
				t.Skip("this transport removes no groups")
			}
			if c := operator.Capabilities(); order != driver.Unordered && (!c.ByKey || !c.Park) {
				t.Skip("this transport does not support parking in the order of keys")
			}
			w.remove(operator, remover, order)
		})
	}
}

// remove fills a group with messages of every kind, removes it, and checks that nothing of it is left and that another group with
// the same topic, and a name that begins alike, is as it was.
func (w *world) remove(operator driver.Transport, remover driver.GroupRemover, order driver.Order) {
	paid := w.topic("order.paid.v1")
	sub := w.subscription("ledger", paid)
	sub.Order, sub.Park, sub.Delays = order, order != driver.Unordered, []time.Duration{7 * time.Minute, time.Hour}
	consumer, publisher := w.open(), w.open()
	receiver := w.subscribe(consumer, sub)
	other := w.subscribe(publisher, w.subscription("ledger.copy", paid))
	require.ErrorIs(w, remover.RemoveGroup(w.ctx, w.group("leger")), driver.ErrNotFound)

	keys := []string{"a", "b", "a", "c", "d"} // the third is parked behind the first, if the group parks
	for i, id := range ids("m", len(keys)) {
		require.NoError(w, publisher.Publish(w.ctx, paid, withKey(newMessage(paid, id), keys[i])))
	}
	poisoned := w.next(receiver)
	require.ErrorIs(w, remover.RemoveGroup(w.ctx, sub.Group), driver.ErrConsumed)
	require.NoError(w, poisoned.Settler.Poison(w.ctx, driver.NewFault(poisoned, errBroken)))
	require.NoError(w, w.next(receiver).Settler.Redeliver(time.Hour))
	require.ErrorIs(w, remover.RemoveGroup(w.ctx, sub.Group), driver.ErrConsumed)
	n, err := operator.PoisonQueue(sub.Group).Len(w.ctx)
	require.NoError(w, err)
	require.Equal(w, 1, n, "a refusal deletes nothing")
	require.NoError(w, consumer.Close(w.ctx))

	w.eventually("the consumer has gone", func() bool {
		err = remover.RemoveGroup(w.ctx, sub.Group)
		return !errors.Is(err, driver.ErrConsumed)
	})
	require.NoError(w, err)
	require.ErrorIs(w, remover.RemoveGroup(w.ctx, sub.Group), driver.ErrNotFound)
	if inspector, ok := operator.(driver.Inspector); ok {
		groups := w.groups(inspector)
		require.NotContains(w, groups, sub.Group)
		require.Contains(w, groups, w.group("ledger.copy"))
		topics, err := inspector.Topics(w.ctx)
		require.NoError(w, err)
		for _, topic := range topics {
			require.NotContains(w, topic.Groups, sub.Group)
		}
	}
	w.publish(publisher, paid, "while it was gone")

	anew := w.open()
	sub.Order, sub.Park = driver.Unordered, false
	receiver = w.subscribe(anew, sub)
	w.publish(publisher, paid, "new")
	require.Equal(w, []string{"new"}, w.collect(receiver, 1), "a group of the same name begins without messages")
	n, err = anew.PoisonQueue(sub.Group).Len(w.ctx)
	require.NoError(w, err)
	require.Zero(w, n)
	require.ElementsMatch(w, slices.Concat(ids("m", len(keys)), []string{"while it was gone", "new"}), w.collect(other, len(keys)+2))
}
