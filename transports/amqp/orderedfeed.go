package amqp

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/ordered"
	"github.com/leatbus/leat/transports/internal/waiting"
)

const (
	// With order by key there is room for messages that wait behind one of their key while others pass.
	prefetchByKey    = 10
	minPrefetchByKey = 200
	prefetchStrictly = 20
	leastPrefetch    = 8

	// parkedPairs is how many pairs of parked queues a group has.
	parkedPairs = 1
	// messageOverhead is what a message takes in memory beside its body, roughly.
	messageOverhead = 1 << 10
	// shortWait is the longest redelivery delay of an ordered group for which a delivery stays in the process.
	shortWait = 2 * time.Second
	// longestTick is how often a process sends a tick to its group's queue, at least.
	longestTick = 5 * time.Second
)

// orderedFeed is a subscription of an ordered group. Its sessions come one after the other; each has a connection, and
// leads the group if the broker makes it the queue's active consumer.
type orderedFeed struct {
	*intake
	queue  string
	config ordered.Config

	mu         sync.Mutex // guards what is below, the current session, and the machines of all sessions
	closed     bool
	memory     *ordered.Memory
	session    *orderedSession // nil between two
	ready      []*orderedItem  // of the current session
	calls      *waiting.Calls[*orderedItem]
	out        int // handed out and not settled
	suspectOut bool
	unseen     unseen
}

func newOrderedFeed(t *Transport, s driver.Subscription) *orderedFeed {
	f := &orderedFeed{intake: newIntake(t, s), queue: s.Group, memory: ordered.NewMemory(), unseen: make(unseen)}
	f.calls = waiting.New(&f.mu, f.take)
	prefetch := t.cfg.PrefetchCount
	switch {
	case prefetch > 0:
	case s.Order == driver.OrderedStrictly:
		prefetch = prefetchStrictly
	default:
		prefetch = min(max(prefetchByKey*s.Concurrency, minPrefetchByKey), maxPrefetch)
	}
	prefetch = max(prefetch, leastPrefetch)
	tick := longestTick
	if t.cfg.Heartbeat > 0 {
		tick = min(t.cfg.Heartbeat/2, longestTick)
	}
	f.config = ordered.Config{
		Park: s.Park, Prefetch: prefetch, Held: prefetch / 2, HeldBytes: 8 << 20, MaxKeys: 100_000, MaxKeyBytes: 16 << 20,
		Pairs: parkedPairs, LogRecords: 20_000, Short: shortWait, Tick: tick,
	}
	return f
}

// Next blocks until there is a message that may be handled. While the connection is lost, or another process leads, it
// waits.
func (f *orderedFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	f.begin.Do(f.start)
	it, err := f.calls.Next(ctx, nil)
	if err != nil {
		return nil, err
	}
	return it.handOut(), nil
}

// take takes the next message out. The caller holds f.mu.
func (f *orderedFeed) take() (*orderedItem, bool) {
	s := f.session
	if s == nil || s.machine == nil || len(f.ready) == 0 {
		return nil, false
	}
	s.checkStall(time.Now())
	if len(f.ready) == 0 || !s.machine.MayDeliver() || !f.mayHandOut(f.ready[0]) {
		return nil, false
	}
	it := f.ready[0]
	f.ready[0], f.ready = nil, f.ready[1:]
	it.out, it.seen = true, true
	f.suspectOut = it.suspect()
	f.out++
	f.t.active.Add(1)
	return it, true
}

// mayHandOut keeps a message alone that may crash the process.
func (f *orderedFeed) mayHandOut(it *orderedItem) bool {
	return !f.suspectOut && (!it.suspect() || f.out == 0)
}

// start begins consuming, at the first Next.
func (f *orderedFeed) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.t.work.Go(f.run)
	}
}

// run consumes until the feed is closed, over as many sessions as it takes.
func (f *orderedFeed) run() {
	defer f.release()
	pause := newBackoff()
	declared := true
	for f.open.Err() == nil {
		began := time.Now()
		err := f.serve(declared)
		declared = !isMissing(err)
		if errors.Is(err, errRenew) {
			continue
		}
		if time.Since(began) > soundSession {
			pause.Reset()
		}
		if f.open.Err() != nil {
			return
		}
		f.t.cfg.Logger.Warn("leat: amqp: consuming is interrupted", "group", f.sub.Group, "error", err)
		pause.Wait(f.open)
	}
}

// leave ends a hand-out. The caller holds f.mu.
func (f *orderedFeed) leave(it *orderedItem) {
	if !it.out {
		return
	}
	it.out = false
	f.out--
	f.t.active.Add(-1)
	if it.suspect() {
		// Its ack must be on its way before the next can crash the process.
		time.AfterFunc(crashPause, f.suspectDone)
	}
}

// suspectDone lets others be handed out again.
func (f *orderedFeed) suspectDone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.suspectOut = false
	f.calls.Wake()
}

// act carries out what the current session has to do. The caller holds f.mu.
func (f *orderedFeed) act() {
	if f.session != nil {
		f.session.carryOut()
	}
	f.calls.Wake()
}

// forget removes the messages of a session that is over from the ready ones. The caller holds f.mu.
func (f *orderedFeed) forget(s *orderedSession) {
	f.ready = slices.DeleteFunc(f.ready, func(it *orderedItem) bool { return it.s == s })
	if f.session == s {
		f.session = nil
	}
}

// shut stops taking in.
func (f *orderedFeed) shut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.calls.Close()
	if f.session == nil {
		f.release()
	}
	f.stop()
}

// Close stops taking in. What was not handed out goes back when all that is out is settled.
func (f *orderedFeed) Close(ctx context.Context) error {
	f.shut()
	return f.await(ctx)
}
