package transporttest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// testInspect tests transports that are a [driver.Inspector]. A count may be unknown or late.
func testInspect(t *testing.T, h Harness) {
	w := newWorld(t, h)
	began := time.Now()
	transport := w.open()
	inspector, ok := w.another(transport).(driver.Inspector)
	if !ok {
		t.Skip("this transport shows operators nothing")
	}
	paid, placed := w.topic("order.paid.v1"), w.topic("order.placed.v1")
	delaying := w.subscription("ledger", paid)
	delaying.Delays = []time.Duration{time.Hour} // a transport may count only what waits for such a delay
	ledger := w.subscribe(transport, delaying)
	mail := w.subscription("mail", paid, placed)
	mail.Topics = []string{w.topic("order.*.*")}
	w.subscribe(transport, mail)

	t.Run("a group that was subscribed exists", func(*testing.T) {
		finder, ok := inspector.(driver.GroupFinder)
		require.True(w, ok || !transport.Capabilities().Durable, "a durable transport is a driver.GroupFinder")
		if !ok {
			return
		}
		found, err := finder.FindGroup(w.ctx, w.group("nobody"), w.group("ledger"))
		require.NoError(w, err)
		require.Equal(w, w.group("ledger"), found)
		found, err = finder.FindGroup(w.ctx, w.group("nobody"))
		require.NoError(w, err)
		require.Empty(w, found)
	})

	t.Run("consumers say what they are", func(t *testing.T) {
		lister, ok := inspector.(driver.ConsumerLister)
		if !ok {
			t.Skip("this transport lists no consumers")
		}
		testConsumers(t, w, transport, lister)
	})

	t.Run("groups", func(*testing.T) {
		w.publish(transport, paid, ids("m", 4)...)
		w.publish(transport, placed, "p")
		poisoned := w.next(ledger)
		require.NoError(w, poisoned.Settler.Poison(w.ctx, driver.NewFault(poisoned, errBroken)))
		require.NoError(w, w.next(ledger).Settler.Redeliver(time.Hour))
		held := w.next(ledger)
		w.eventually("the counts are true", func() bool {
			groups := w.groups(inspector)
			l, m := groups[w.group("ledger")], groups[w.group("mail")]
			return is(l.Poisoned, 1) && is(l.Delayed, 1) && inAll(2, l.InFlight, l.Waiting) && is(m.Poisoned, 0) && inAll(5, m.InFlight, m.Waiting) &&
				is(l.Consumers, 1) && m.Consumers <= 1 // nobody has asked for mail's first message
		})
		groups := w.groups(inspector)
		require.Equal(w, []string{paid}, groups[w.group("ledger")].Topics)
		require.Equal(w, mail.Topics, groups[w.group("mail")].Topics)
		if oldest := groups[w.group("mail")].Oldest; !oldest.IsZero() {
			require.WithinRange(w, oldest, began.Add(-time.Minute), time.Now().Add(time.Minute))
		}
		w.ack(held)
	})

	t.Run("topics", func(*testing.T) {
		topics, err := inspector.Topics(w.ctx)
		require.NoError(w, err)
		have := make(map[string][]string)
		for _, topic := range topics {
			have[topic.Topic] = topic.Groups
		}
		require.Equal(w, []string{w.group("ledger")}, have[paid])
		require.Equal(w, []string{w.group("mail")}, have[w.topic("order.*.*")])
	})

	t.Run("tail", func(t *testing.T) { w.tail(t, transport, inspector, placed) })

	t.Run("diagnose", func(*testing.T) {
		findings := transport.(driver.Inspector).Diagnose(w.ctx) // the other one may find that nobody consumes mail
		require.NotEmpty(w, findings)
		for _, f := range findings {
			require.NotEmpty(w, f.Check)
			require.NoError(w, f.Err, f.Check)
			require.NotEmpty(w, f.Text, f.Check)
		}
	})
}

// testConsumers tests [driver.ConsumerLister]. A consumer may be listed only from its first call of Next on.
func testConsumers(t *testing.T, w *world, transport driver.Transport, lister driver.ConsumerLister) {
	none, err := lister.Consumers(w.ctx, w.group("nobody"))
	if errors.Is(err, driver.ErrUnsupported) {
		t.Skip("this message system lists no consumers")
	}
	require.NoError(t, err)
	require.Empty(t, none)
	sub := w.subscription("stock", w.topic("stock.counted.v1"), w.topic("stock.>"))
	sub.Program = "acme.example/shop/cmd/stock"
	receiver := w.subscribe(transport, sub)
	stop := w.consume(receiver, 1, func(*driver.Delivery) {})
	var all driver.GroupConsumers
	w.eventually("the consumer is listed", func() bool {
		all, err = lister.Consumers(w.ctx, sub.Group)
		require.NoError(t, err)
		return len(all.Consumers) == 1 && all.Consumers[0].Place != "" // which may be known later
	})
	require.ElementsMatch(t, sub.Topics, all.Topics)
	require.Equal(t, sub.Program, all.Consumers[0].Program)
	require.Equal(t, sub.Topics, all.Consumers[0].Topics)
	stop()
	require.NoError(t, receiver.Close(w.ctx))
	w.eventually("the consumer has gone", func() bool {
		all, err = lister.Consumers(w.ctx, sub.Group)
		require.NoError(t, err)
		return len(all.Consumers) == 0
	})
	require.ElementsMatch(t, sub.Topics, all.Topics, "a group keeps its topics")
}

var errEnough = errors.New("seen enough")

// tail tests Tail: copies arrive, groups get all their messages, and no group remains afterwards.
func (w *world) tail(t *testing.T, transport driver.Transport, inspector driver.Inspector, topic string) {
	topics, err := inspector.Topics(w.ctx)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(w.ctx)
	seen, ended := make(chan string, 1000), make(chan error, 1)
	go func() {
		ended <- inspector.Tail(ctx, w.topic("order.placed.>"), func(topic string, msg *message.Message) error {
			seen <- topic + " " + driver.MessageID(msg)
			return nil
		})
	}()
	n := 0
	for waiting := true; waiting; { // it takes a while until copies come
		n++
		w.publish(transport, topic, ids("copied", n)[n-1])
		select {
		case got := <-seen:
			require.Contains(t, got, topic+" copied-")
			waiting = false
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)

	result := make(chan error, 1)
	go func() {
		result <- inspector.Tail(w.ctx, topic, func(string, *message.Message) error { return errEnough })
	}()
	w.eventually("the reader's own error ends it", func() bool {
		n++
		w.publish(transport, topic, ids("copied", n)[n-1])
		select {
		case err := <-result:
			require.ErrorIs(t, err, errEnough)
			return true
		default:
			return false
		}
	})

	w.eventually("the group has every message", func() bool {
		m := w.groups(inspector)[w.group("mail")]
		return inAll(5+n, m.InFlight, m.Waiting)
	})
	after, err := inspector.Topics(w.ctx)
	require.NoError(t, err)
	require.Equal(t, w.mine(topics), w.mine(after), "a tail leaves nothing behind that shows")
	require.Error(t, inspector.Tail(w.ctx, "order.>.paid", nil), "no pattern")
}

// mine returns the topics of this test; other tests may run at the same time.
func (w *world) mine(all []driver.TopicInfo) (mine []driver.TopicInfo) {
	for _, topic := range all {
		if driver.MatchTopic(w.prefix+".>", topic.Topic) {
			mine = append(mine, topic)
		}
	}
	return mine
}

func (w *world) groups(inspector driver.Inspector) map[string]driver.GroupInfo {
	all, err := inspector.Groups(w.ctx)
	require.NoError(w, err)
	byName := make(map[string]driver.GroupInfo, len(all))
	for _, g := range all {
		byName[g.Name] = g
	}
	return byName
}

// is reports whether a count has a value or is unknown.
func is(count, want int) bool { return count == want || count == driver.Unknown }

// inAll reports whether counts add up, unless one of them is unknown.
func inAll(want int, counts ...int) bool {
	for _, n := range counts {
		if n == driver.Unknown {
			return true
		}
		want -= n
	}
	return want == 0
}
