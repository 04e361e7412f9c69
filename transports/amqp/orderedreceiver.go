package amqp

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

const (
	// The prefetch of groups ordered by key leaves room for messages that wait behind another one of their key.
	prefetchByKey    = 10
	minPrefetchByKey = 200
	prefetchStrictly = 20
	leastPrefetch    = 8

	// parkedPairs is how many pairs of parked queues a group has.
	parkedPairs = 1
	// messageOverhead is roughly how much memory a message takes in addition to its body, which keep bounds.
	messageOverhead = 1 << 10
	// shortWait is the longest redelivery delay of an ordered group for which a delivery stays in the process.
	shortWait = 2 * time.Second
	// longestTick is how long a leader that has something to do waits for a delivery before it sends a tick.
	longestTick = 5 * time.Second

	// A process also sends a tick to each of its groups at longer intervals: of idleTick, or idleTickPace for each of its
	// groups if that is longer. The leader keeps the last tick unacked, and the broker's consumer_timeout, 30 minutes by default,
	// must not end. So the interval has a limit, which is halved each time the broker closes the consumer for that reason.
	idleTick      = 30 * time.Second
	idleTickPace  = time.Second
	idleTickLimit = 15 * time.Minute
)

// An orderedReceiver is a subscription of an ordered group. Its sessions follow each other; each has a connection, and
// leads the group if the broker makes it the queue's active consumer. mu also guards the machines of all sessions.
type orderedReceiver struct {
	*intake[*orderedItem, orderedSession]
	queue    string
	config   ordered.Config
	declared bool // the queues were declared just now; used by runSession only

	// Guarded by mu:
	memory     *ordered.Memory
	out        int // handed out and not settled
	suspectOut bool
	longest    time.Duration // limit of idleTick

	mostBytes int // of bodies that wait in memory, and of those that workers have
	outBytes  int
	peakBytes int
}

func newOrderedReceiver(t *Transport, s driver.Subscription) *orderedReceiver {
	f := &orderedReceiver{queue: s.Group, declared: true, longest: idleTickLimit, memory: ordered.NewMemory(), mostBytes: t.cfg.PrefetchBytes / 2}
	f.intake = newIntake[*orderedItem, orderedSession](t, s, f.take, func(it *orderedItem) error { return it.s.bodies.load(it) }, f.runSession)
	prefetch := t.cfg.PrefetchCount
	switch {
	case prefetch > 0:
	case s.Order == driver.OrderedStrictly:
		prefetch = prefetchStrictly
	default:
		prefetch = min(max(prefetchByKey*s.Concurrency, minPrefetchByKey), maxPrefetch)
	}
	prefetch = max(prefetch, leastPrefetch)
	f.config = ordered.Config{
		Park: s.Park, Prefetch: prefetch, Held: prefetch / 2, HeldBytes: 8 << 20, MaxKeys: 100_000, MaxKeyBytes: 16 << 20,
		Pairs: parkedPairs, LogRecords: 20_000, Short: shortWait, Tick: min(t.cfg.Heartbeat/2, longestTick),
		Idle: f.idleTick, Process: ids.New(),
	}
	return f
}

// take removes the next message that may be handed out, and returns it.
func (f *orderedReceiver) take() (*orderedItem, bool) {
	s := f.session
	if s == nil || s.machine == nil || len(f.ready) == 0 {
		return nil, false
	}
	s.checkStall(time.Now())
	if len(f.ready) == 0 || !s.machine.MayDeliver() || !f.mayHandOut(f.ready[0]) || !f.roomOut(f.ready[0]) {
		return nil, false
	}
	it := f.ready[0]
	s.bodies.uncount(it)
	f.outBytes += it.bytes
	f.notePeak(s)
	f.ready[0], f.ready = nil, f.ready[1:]
	it.out, it.given = true, true
	it.seen = it.seen || it.spilled == nil // else load says so
	f.suspectOut = it.suspect()
	f.out++
	f.t.active.Add(1)
	return it, true
}

// ParkedKeys implements [driver.ParkedKeyCounter]. Only the leader of the group knows.
func (f *orderedReceiver) ParkedKeys(context.Context) (int, error) {
	info := driver.GroupInfo{ParkedKeys: driver.Unknown}
	f.count(&info)
	return info.ParkedKeys, nil
}

// mayHandOut makes sure that a message that may crash the process is handed out alone.
func (f *orderedReceiver) mayHandOut(it *orderedItem) bool {
	return !f.suspectOut && (!it.suspect() || f.out == 0)
}

// runSession runs one session and returns why it has ended.
func (f *orderedReceiver) runSession() error {
	err := f.serve(f.declared)
	f.declared = !isMissing(err)
	if errors.Is(err, errAckTimeout) {
		f.mu.Lock()
		f.longest = max(f.longest/2, f.config.Tick)
		f.mu.Unlock()
	}
	return err
}

// idleTick returns how long after a tick the next one is due if there is nothing to do: at random, so that groups do not send
// theirs together.
func (f *orderedReceiver) idleTick() time.Duration {
	idle := min(max(idleTick, time.Duration(f.t.topology.size())*idleTickPace), f.longest)
	return idle - rand.N(idle/4)
}

// leave records that a worker has settled a message.
func (f *orderedReceiver) leave(it *orderedItem) {
	if !it.out {
		return
	}
	it.out = false
	f.out--
	f.outBytes -= it.bytes
	f.t.active.Add(-1)
	if it.suspect() {
		// Its ack must be sent before the next message can crash the process.
		time.AfterFunc(crashPause, f.suspectDone)
	}
}

// suspectDone allows other messages to be delivered again.
func (f *orderedReceiver) suspectDone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.suspectOut = false
	f.calls.Wake()
}

// act carries out the effects of the current session and wakes the calls that wait.
func (f *orderedReceiver) act() {
	if f.session != nil {
		f.session.carryOut()
	}
	f.calls.Wake()
}

// forget removes the messages of a session that is over from the ready ones.
func (f *orderedReceiver) forget(s *orderedSession) {
	f.ready = slices.DeleteFunc(f.ready, func(it *orderedItem) bool { return it.s == s })
	if f.session == s {
		f.session = nil
	}
}
