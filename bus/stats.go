package bus

import (
	"context"
	"sync/atomic"

	"github.com/leatbus/leat/internal/waitcounter"
)

// Stats has the counters of a bus since it was created.
type Stats struct {
	Published uint64 // messages that are safe on the transport
	Unrouted  uint64 // those of them that no group has subscribed to
	// ObserverPanics counts the panics of observers, which change nothing else.
	ObserverPanics uint64
	Groups         map[string]GroupStats
}

// GroupStats has the counters of one group of the bus. The outcomes count every delivery that this bus handled, no matter
// which bus published the message.
type GroupStats struct {
	Handled     uint64
	Duplicates  uint64
	Poisoned    uint64
	Discarded   uint64
	Redelivered uint64
	Interrupted uint64
	InFlight    int64 // deliveries in the stack now

	Retries     uint64 // tries in process that followed a failed one, without a new delivery
	Panics      uint64 // of the handler, and of steps
	DedupFaults uint64 // calls of the dedup store that failed

	// Expected counts the messages that this bus published and the group has subscribed to.
	Expected uint64
	// Settled counts those of Expected that reached a terminal outcome in this process. If other processes share the group,
	// it stays below Expected.
	Settled uint64
	// Parked counts those of Expected that began to wait behind a poisoned message, if the transport is in this process and
	// reports it. They are not tracked any more, because they may wait for ever: handling one later does not change Settled.
	Parked uint64
}

// Outstanding returns how many of the bus's own messages have no outcome yet, and are not parked.
func (s GroupStats) Outstanding() uint64 { return s.Expected - min(s.Settled+s.Parked, s.Expected) }

// Stats returns a snapshot.
func (b *Bus) Stats() Stats {
	s := Stats{
		Published: b.tracking.published.Load(),
		Unrouted:  b.tracking.unrouted.Load(),

		ObserverPanics: b.observerPanics.Load(),
		Groups:         make(map[string]GroupStats),
	}
	for _, g := range b.groups.all() {
		s.Groups[g.handler.Name] = g.counts.snapshot()
	}
	return s
}

// Idle blocks until every message that this bus published, also in handlers, has reached a terminal outcome in each of the
// bus's groups, and no delivery is in the stack. It returns ctx's error if ctx is done first. Idle is meant for tests and
// for programs that end: if other processes share the groups, or messages are parked on a durable transport, it may block
// until ctx is done.
func (b *Bus) Idle(ctx context.Context) error {
	for {
		if err := b.tracking.inStack.Wait(ctx); err != nil {
			return err
		}
		// A handler publishes before it leaves the stack.
		if b.tracking.outstanding.Zero() {
			return nil
		}
		if err := b.tracking.outstanding.Wait(ctx); err != nil {
			return err
		}
	}
}

// tracking counts the messages that the bus has published and those that it handles, so that Idle can wait for them.
type tracking struct {
	published   atomic.Uint64
	unrouted    atomic.Uint64
	outstanding waitcounter.Counter // pairs of a message and a group without a terminal outcome
	inStack     waitcounter.Counter // deliveries in the stack
}

// expect adds n messages to those that the groups will get; a negative n takes them off again.
func (t *tracking) expect(groups []*group, n int) {
	if len(groups) == 0 {
		return
	}
	for _, g := range groups {
		g.counts.expected.Add(int64(n))
	}
	t.outstanding.Add(int64(n) * int64(len(groups)))
}

// counts are a group's counters.
type counts struct {
	handled, duplicates, poisoned, discarded, redelivered, interrupted atomic.Uint64

	retries, panics, dedupFaults atomic.Uint64

	inFlight atomic.Int64
	expected atomic.Int64
	settled  atomic.Uint64
	parked   atomic.Uint64

	durations atomic.Pointer[durations] // nil until somebody asks for them
}

func (c *counts) add(o Outcome) {
	switch o {
	case Handled:
		c.handled.Add(1)
	case Duplicate:
		c.duplicates.Add(1)
	case Poisoned:
		c.poisoned.Add(1)
	case Discarded:
		c.discarded.Add(1)
	case Redelivered:
		c.redelivered.Add(1)
	case Interrupted:
		c.interrupted.Add(1)
	}
}

func (c *counts) snapshot() GroupStats {
	return GroupStats{
		Handled:     c.handled.Load(),
		Duplicates:  c.duplicates.Load(),
		Poisoned:    c.poisoned.Load(),
		Discarded:   c.discarded.Load(),
		Redelivered: c.redelivered.Load(),
		Interrupted: c.interrupted.Load(),
		InFlight:    c.inFlight.Load(),
		Retries:     c.retries.Load(),
		Panics:      c.panics.Load(),
		DedupFaults: c.dedupFaults.Load(),
		Expected:    uint64(max(c.expected.Load(), 0)),
		Settled:     c.settled.Load(),
		Parked:      c.parked.Load(),
	}
}
