package transporttest

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testWalk tests a poison queue that is a [driver.PoisonWalker].
func testWalk(t *testing.T, h Harness) {
	w := newWorld(t, h)
	transport := w.open()
	topic := w.topic("order.paid.v1")
	walker, ok := transport.PoisonQueue(w.group("ledger")).(driver.PoisonWalker)
	if !ok {
		t.Skip("this transport has no walk; its pages are as quick")
	}
	ledger := w.subscribe(transport, w.subscription("ledger", topic))
	walk := func() (ids []string) {
		require.NoError(w, walker.Walk(w.ctx, func(m driver.PoisonedMessage) error {
			ids = append(ids, driver.MessageID(m.Message))
			return nil
		}))
		return ids
	}
	require.Empty(t, walk())
	published := ids("m", 7)
	w.publish(transport, topic, published...)
	for range published {
		d := w.next(ledger)
		require.NoError(t, d.Settler.Poison(w.ctx, driver.NewFault(d, errBroken)))
	}
	for range 5 {
		require.Equal(t, published, walk(), "looking changes nothing")
	}

	n, enough := 0, errors.New("enough")
	require.ErrorIs(t, walker.Walk(w.ctx, func(driver.PoisonedMessage) error {
		if n++; n == 3 {
			return enough
		}
		return nil
	}), enough)
	require.Equal(t, 3, n)

	queue := w.another(transport).PoisonQueue(w.group("ledger"))
	n = 0
	require.NoError(t, walker.Walk(w.ctx, func(m driver.PoisonedMessage) error {
		n++
		_, err := queue.Replay(w.ctx, m.ID) // a walk does not block other users of the queue
		return err
	}))
	require.Equal(t, len(published), n)
	require.ElementsMatch(t, published, w.collect(ledger, len(published)))
	require.Empty(t, walk())

	// Whoever counts while somebody reads counts everything.
	many := make([]driver.PoisonedMessage, 300)
	for i := range many {
		many[i].Message = newMessage(topic, ids("n", i+1)[i])
		driver.Fault{Topic: topic, Group: w.group("ledger")}.Set(many[i].Message.Metadata)
	}
	require.NoError(t, queue.Put(w.ctx, many...))
	require.ErrorIs(t, walker.Walk(w.ctx, func(driver.PoisonedMessage) (err error) {
		if n, err = queue.Len(w.ctx); err != nil {
			return err
		}
		return enough
	}), enough)
	require.Len(t, many, n)
}
