package bus

import (
	"context"
	"sync/atomic"

	"github.com/leatbus/leat/internal/waitcounter"
)

// Stats is what a bus knows of its messages since it was made.
type Stats struct {
	Published uint64 // messages that are safe on the transport
	Unrouted  uint64 // those of them that no group wanted
	// ObserverPanics counts the panics of observers, which change nothing else.
	ObserverPanics uint64
	Groups         map[string]GroupStats
}

// GroupStats is what happened in one of the bus's groups, by handler name. The outcomes count every
// delivery that this bus handled, whoever published the message.
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

	// Expected counts the messages that this bus published and the group asked for, Settled those
	// of them that came to a terminal outcome in this process. Where other processes share the
	// group, Settled stays behind. Parked counts those that began to wait behind a poisoned one,
	// where the transport is in this process and can tell: they may wait for ever, and what is
	// replayed or let go later is on no account any more.
	Expected uint64
	Settled  uint64
	Parked   uint64
}

// Outstanding returns how many of the bus's own messages have no outcome yet, and are not parked.
func (s GroupStats) Outstanding() uint64 { return s.Expected - min(s.Settled+s.Parked, s.Expected) }

// Stats returns a snapshot.
func (b *Bus) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{
		Published: b.ledger.published.Load(),
		Unrouted:  b.ledger.unrouted.Load(),

		ObserverPanics: b.observerPanics.Load(),
		Groups:         make(map[string]GroupStats, len(b.groups)),
	}
	for _, g := range b.groups {
		s.Groups[g.handler.Name] = g.counts.snapshot()
	}
	return s
}

// Idle blocks until every message that this bus published has come to a terminal outcome in each of
// its groups, messages published by handlers included, and no delivery is in the stack; or until ctx
// is done. It is meant for tests and for programs that end; where other processes share the groups,
// or messages are parked on a durable transport, it may wait for ever.
func (b *Bus) Idle(ctx context.Context) error {
	for {
		if err := b.ledger.inStack.Wait(ctx); err != nil {
			return err
		}
		// A handler publishes before it leaves the stack.
		if b.ledger.outstanding.Zero() {
			return nil
		}
		if err := b.ledger.outstanding.Wait(ctx); err != nil {
			return err
		}
	}
}

// ledger is the bus's account of its own messages.
type ledger struct {
	published   atomic.Uint64
	unrouted    atomic.Uint64
	outstanding waitcounter.Counter // outcomes that are still missing
	inStack     waitcounter.Counter // deliveries
}

// expect adds n messages to what the groups will get.
func (l *ledger) expect(groups []*group, n int) {
	if len(groups) == 0 {
		return
	}
	for _, g := range groups {
		g.counts.expected.Add(int64(n))
	}
	l.outstanding.Add(int64(n) * int64(len(groups)))
}

// counts are a group's counters.
type counts struct {
	handled, duplicates, poisoned, discarded, redelivered, interrupted atomic.Uint64

	retries, panics, dedupFaults atomic.Uint64

	inFlight atomic.Int64
	expected atomic.Int64
	settled  atomic.Uint64
	parked   atomic.Uint64
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
