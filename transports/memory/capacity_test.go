package memory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestCapacities_randomHistories holds the capacities against what the queues really have, after every step of random
// histories: nobody is blocked while there is room for the one whose turn it is, keys keep their order,
// nothing is lost, and in the end all accounts are empty.
func TestCapacities_randomHistories(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newHistory(t, uint64(seed)).run() })
		})
	}
}

type history struct {
	*testing.T
	rand      *rand.Rand
	transport *Transport
	groups    []*historyGroup
	published map[string]int // by topic, what Publish returned nil for
	open      int            // publishers and operators at work
	outcomes  chan func()
	bound     int
	next      int
}

type historyGroup struct {
	name   string
	topics []string
	feed   driver.Receiver
	group  *group
	poison driver.PoisonQueue
	out    []*driver.Delivery
	done   map[string]int // messages by topic that were acked or dropped
}

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{T: t, rand: rand.New(rand.NewPCG(seed, 1)), published: make(map[string]int), outcomes: make(chan func(), 10_000)}
	cfg := Config{Bytes: 3000 + h.rand.IntN(6000), Logger: slog.New(slog.DiscardHandler)}
	if h.rand.IntN(2) == 0 {
		cfg.Queue = 2 + h.rand.IntN(8)
	}
	h.bound = cfg.Bytes
	h.transport = New(cfg)
	for i, s := range []driver.Subscription{
		{Group: "plain", Topics: []string{"x", "y"}},
		{Group: "by-key", Topics: []string{"x", "z"}, Order: driver.OrderedByKey, Park: true},
		{Group: "strict", Topics: []string{"w", "x"}, Order: driver.OrderedStrictly, Park: h.rand.IntN(2) == 0},
	} {
		s.Concurrency = 1
		feed, err := h.transport.Subscribe(t.Context(), s)
		require.NoError(t, err)
		h.groups = append(h.groups, &historyGroup{
			name: s.Group, topics: s.Topics, feed: feed, group: groupOf(feed),
			poison: h.transport.PoisonQueue(s.Group), done: make(map[string]int),
		})
		require.Equal(t, i, h.groups[i].group.number)
	}
	return h
}

func (h *history) run() {
	for range 60 + h.rand.IntN(200) {
		h.step()
		h.check()
	}
	h.finish()
}

func (h *history) step() {
	g := h.groups[h.rand.IntN(len(h.groups))]
	switch h.rand.IntN(12) {
	case 0, 1, 2, 3, 4:
		h.publish([]string{"w", "x", "y", "z", "z", "z"}[h.rand.IntN(6)])
	case 5, 6:
		h.take(g)
	case 7, 8:
		h.settle(g)
	case 9:
		h.operate(g)
	default:
		time.Sleep(time.Duration(h.rand.IntN(100_000)) * time.Millisecond)
	}
}

func (h *history) publish(topic string) {
	h.next++
	msg := message.NewMessage(fmt.Sprintf("m-%d", h.next), make([]byte, h.rand.IntN(1500)))
	if h.rand.IntN(20) == 0 {
		msg.Payload = make([]byte, h.bound) // it fits alone
	}
	msg.Metadata = message.Metadata{driver.HeaderPartitionKey: []string{"", "a", "b", "c"}[h.rand.IntN(4)]}
	if h.rand.IntN(5) == 0 {
		msg.Metadata[driver.HeaderDeliverAt] = time.Now().Add(time.Duration(h.rand.IntN(3600)) * time.Second).Format(time.RFC3339Nano)
	}
	ctx := h.Context()
	if h.rand.IntN(4) == 0 {
		ctx = driver.ContextWithDelivery(ctx, &driver.Delivery{Message: msg})
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(1+h.rand.IntN(3_600_000))*time.Millisecond)
	h.concurrently(func() (outcome func()) {
		defer cancel()
		err := h.transport.Publish(ctx, topic, msg)
		return func() {
			if err == nil {
				h.published[topic]++
			} else {
				require.ErrorIs(h, err, context.DeadlineExceeded)
			}
		}
	})
}

// concurrently runs do beside the history, and its outcome in the history.
func (h *history) concurrently(do func() (outcome func())) {
	h.open++
	go func() { h.outcomes <- do() }()
}

func (h *history) take(g *historyGroup) bool {
	ctx, cancel := context.WithTimeout(h.Context(), time.Millisecond)
	defer cancel()
	d, err := g.feed.Next(ctx)
	if err != nil {
		require.ErrorIs(h, err, context.DeadlineExceeded)
		return false
	}
	it := d.Settler.(*delivery).item
	if it.key != "" {
		require.False(h, g.group.keys.byKey[it.key].holdsBack(it.seq), "%s passes a poisoned message", it.msg.UUID)
		for _, other := range g.out {
			require.NotEqual(h, it.key, other.Settler.(*delivery).item.key, "two messages of a key are out")
		}
	}
	g.out = append(g.out, d)
	return true
}

func (h *history) settle(g *historyGroup) {
	if len(g.out) == 0 {
		return
	}
	i := h.rand.IntN(len(g.out))
	d := g.out[i]
	g.out = slices.Delete(g.out, i, i+1)
	switch h.rand.IntN(8) {
	case 0, 4:
		require.NoError(h, d.Settler.Poison(h.Context(), driver.NewFault(d, errors.New("broken"))))
	case 1:
		require.NoError(h, d.Settler.GiveBack(0))
	case 2:
		require.NoError(h, d.Settler.GiveBack(time.Duration(h.rand.IntN(600))*time.Second))
	case 3:
		require.NoError(h, d.Settler.Redeliver(time.Duration(h.rand.IntN(600))*time.Second))
	default:
		require.NoError(h, d.Settler.Ack())
		g.done[d.Topic]++
	}
}

// operate replays or drops one poisoned message.
func (h *history) operate(g *historyGroup) {
	all, err := g.poison.List(h.Context(), "", 100)
	require.NoError(h, err)
	if len(all) == 0 {
		return
	}
	m := all[h.rand.IntN(len(all))]
	if h.rand.IntN(2) == 0 {
		n, _ := g.poison.Drop(h.Context(), m.ID)
		g.done[m.Topic()] += n
		return
	}
	ctx, cancel := context.WithTimeout(h.Context(), time.Duration(1+h.rand.IntN(600))*time.Second)
	h.concurrently(func() func() {
		defer cancel()
		_, _ = g.poison.Replay(ctx, m.ID)
		return func() {}
	})
}

func (h *history) check() {
	synctest.Wait()
	for len(h.outcomes) > 0 {
		h.open--
		(<-h.outcomes)()
	}
	busy, blocked := 0, 0
	for _, g := range h.groups {
		n, m := h.checkGroup(g)
		busy += n
		blocked += m
	}
	require.Equal(h, h.open, blocked, "each call that has not returned is blocked somewhere, once")
	idle, cancel := context.WithTimeout(h.Context(), time.Nanosecond)
	defer cancel()
	require.Equal(h, busy == 0, h.transport.WaitIdle(idle) == nil, "%d messages are not settled", busy)
}

// checkGroup returns how many messages are not settled, and how many publishers are blocked.
func (h *history) checkGroup(g *historyGroup) (unparked, blocked int) {
	q := g.group
	q.mu.Lock()
	defer q.mu.Unlock()
	parked := 0
	var count, bytes [capacities]int
	visit := func(it *item) {
		if it.parked {
			parked++
		} else {
			unparked++
		}
		for i := range q.capacities {
			if it.capacity == &q.capacities[i] {
				count[i]++
				bytes[i] += it.size
			}
		}
	}
	q.ready.Each(visit)
	for it := range q.delayed.All() {
		visit(it)
	}
	for _, l := range q.keys.byKey {
		l.waiting.Each(visit)
	}
	for _, d := range g.out {
		visit(d.Settler.(*delivery).item)
	}
	for i := range q.capacities {
		a := &q.capacities[i]
		require.Equal(h, count[i], a.count, "%s: messages %s", g.name, a.what)
		require.Equal(h, bytes[i], a.bytes, "%s: bytes %s", g.name, a.what)
		require.True(h, a.count <= 1 || a.bytes <= handlerOverdraft*a.bound, "%s: %d bytes %s", g.name, a.bytes, a.what)
		for class := range a.blocked {
			blocked += a.blocked[class].Len()
			for el := a.blocked[class].Front(); el != nil; el = el.Next() {
				right := q.capacityFor(&el.Value.(*publisher).it)
				require.Equal(h, right.what, a.what, "%s: a publisher waits for the wrong capacity", g.name)
			}
		}
		for class := range a.blocked {
			if first := a.blocked[class].Front(); first != nil {
				p := first.Value.(*publisher)
				require.False(h, a.fits(1, p.it.size, overdraft(class)), "%s: a publisher of class %d is blocked, and there is room %s", g.name, class, a.what)
				break
			}
		}
	}
	require.Equal(h, unparked, q.unsettled, g.name)
	require.Equal(h, parked, q.keys.parked, g.name)
	require.Equal(h, len(g.out), q.out, g.name)
	return unparked, blocked
}

// finish settles everything.
func (h *history) finish() {
	for rounds := 0; ; rounds++ {
		require.Less(h, rounds, 10_000, "it does not end")
		progress := false
		for _, g := range h.groups {
			for h.take(g) {
				progress = true
				d := g.out[len(g.out)-1]
				g.out = g.out[:len(g.out)-1]
				require.NoError(h, d.Settler.Ack())
				g.done[d.Topic]++
				h.check()
			}
			for len(g.out) > 0 {
				progress = true
				h.settle(g)
				h.check()
			}
			all, err := g.poison.List(h.Context(), "", 1)
			require.NoError(h, err)
			if len(all) > 0 {
				progress = true
				_, err := g.poison.Replay(h.Context(), all[0].ID)
				require.NoError(h, err)
				h.check()
			}
		}
		if !progress {
			if h.open == 0 && h.transport.busyNow() == 0 {
				break
			}
			time.Sleep(time.Hour)
			h.check()
		}
	}
	for _, g := range h.groups {
		for _, topic := range g.topics {
			require.Equal(h, h.published[topic], g.done[topic], "%s: messages of %s", g.name, topic)
		}
		for i := range g.group.capacities {
			a := &g.group.capacities[i]
			require.Zero(h, a.count+a.bytes+a.blocked[handlerClass].Len()+a.blocked[otherClass].Len(), "%s: %s", g.name, a.what)
		}
		require.Empty(h, g.group.keys.byKey)
	}
	require.NoError(h, h.transport.Close(h.Context()))
}

func (t *Transport) busyNow() (n int) {
	for _, g := range t.groups {
		g.mu.Lock()
		n += g.unsettled
		g.mu.Unlock()
	}
	return n
}

func groupOf(r driver.Receiver) *group { return r.(*receiver).group }
