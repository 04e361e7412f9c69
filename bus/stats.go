package bus

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leatbus/leat/internal/tally"
)

// Stats is what a bus knows of its messages since it was made.
type Stats struct {
	Published uint64 // messages that are safe on the transport
	Unrouted  uint64 // those of them that no group wanted
	Groups    map[string]GroupStats
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

	// Expected counts the messages that this bus published and the group asked for, Settled those
	// of them that came to a terminal outcome in this process. Where other processes share the
	// group, Settled stays behind. Parked counts those that began to wait behind a poisoned one,
	// where the transport is in this process and can tell: they may wait for ever, and what is
	// replayed or let go later is on no account any more.
	Expected uint64
	Settled  uint64
	Parked   uint64
}

// Outstanding is how many of the bus's own messages have no outcome yet, and are not parked.
func (s GroupStats) Outstanding() uint64 { return s.Expected - min(s.Settled+s.Parked, s.Expected) }

// Stats is a snapshot.
func (b *Bus) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{
		Published: b.ledger.published.Load(),
		Unrouted:  b.ledger.unrouted.Load(),
		Groups:    make(map[string]GroupStats, len(b.groups)),
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
func (b *Bus) Idle(ctx context.Context) error { return b.ledger.outstanding.Wait(ctx) }

// ledger is the bus's account of its own messages.
type ledger struct {
	published   atomic.Uint64
	unrouted    atomic.Uint64
	outstanding tally.Tally // outcomes that are still missing, and deliveries in the stack
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
		Expected:    uint64(max(c.expected.Load(), 0)),
		Settled:     c.settled.Load(),
		Parked:      c.parked.Load(),
	}
}

// Health is the state of a group, or of the outbox.
type Health struct {
	Group    string
	State    State
	Degraded map[string]string // part of the group → what is wrong with it
}

// State is what a group does.
type State string

// States of a group.
const (
	Waiting  State = "waiting"  // not consuming yet
	Running  State = "running"  // consuming
	Degraded State = "degraded" // consuming, but a part such as the poison queue does not work
	Draining State = "draining" // not taking in any more
	Stopped  State = "stopped"
)

// partTransport is the part of every group that is the transport's.
const partTransport = "transport"

// Health is the state of every group, in the order of registration, and of the outbox. What is wrong
// with the transport is wrong with each group; see [Bus.TransportHealth]. It does not block.
func (b *Bus) Health() []Health {
	var broken error
	if h, ok := b.TransportHealth(); ok {
		broken = h.wrong()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.groups)
	if b.cfg.Outbox != nil {
		n++
	}
	all := make([]Health, n)
	for i, g := range b.groups {
		all[i] = Health{Group: g.name, State: b.state(), Degraded: g.health.snapshot()}
		if stuck := g.stuck(); stuck != "" {
			all[i].degrade("handler", stuck)
		}
		if broken != nil {
			all[i].degrade(partTransport, OneLine(broken.Error(), maxErrorText))
		}
		if all[i].State == Running && len(all[i].Degraded) > 0 {
			all[i].State = Degraded
		}
	}
	if b.cfg.Outbox != nil {
		all[len(b.groups)] = b.outboxHealth()
	}
	return all
}

func (h *Health) degrade(part, reason string) {
	if h.Degraded == nil {
		h.Degraded = make(map[string]string)
	}
	h.Degraded[part] = reason
}

// stuckAfter is how long a delivery may be in the stack, beyond its handler's timeout, before the group
// reports it.
const stuckAfter = time.Minute

// stuck names a message whose handler does not come back.
func (g *group) stuck() string {
	limit := max(g.handler.Timeout, 0) + stuckAfter
	for _, w := range g.workers {
		if d := w.current.Load(); d != nil && time.Since(d.started) > limit {
			return fmt.Sprintf("message %s has been in the handler for %s", MessageID(d.Message), time.Since(d.started).Round(time.Second))
		}
	}
	return ""
}

func (b *Bus) state() State {
	for _, s := range []struct {
		reached <-chan struct{}
		state   State
	}{{b.stopped, Stopped}, {b.stopping, Draining}, {b.running, Running}} {
		select {
		case <-s.reached:
			return s.state
		default:
		}
	}
	return Waiting
}

// health is what is wrong with a group, by part. The happy path costs one atomic load.
type health struct {
	count atomic.Int32
	mu    sync.Mutex
	parts map[string]string
}

// set notes a part's reason, nil for none, and reports whether the part's state has changed.
func (h *health) set(part string, reason error) (changed bool) {
	if reason == nil && h.count.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	_, was := h.parts[part]
	if reason == nil {
		delete(h.parts, part)
	} else {
		if h.parts == nil {
			h.parts = make(map[string]string)
		}
		h.parts[part] = OneLine(reason.Error(), maxErrorText)
	}
	h.count.Store(int32(len(h.parts))) //nolint:gosec // a handful of parts
	return was != (reason != nil)
}

func (h *health) snapshot() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.parts)
}
