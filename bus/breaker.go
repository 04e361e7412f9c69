package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/breaker"
)

// BreakerPolicy configures a group's circuit breaker, which pauses the group during an outage of a dependency. To tell an
// outage from a bad message, it checks whether another message of the group has succeeded in this process since this one
// first failed. The zero value is the default policy.
//
// The group pauses in two cases:
//
//  1. At least Messages different messages fail, a share of at least Share of the deliveries fails, and this lasts for
//     Patience or the next failure would poison a message. In a strictly ordered group that parks, one message is enough.
//  2. A message that has been failing for over a minute would be poisoned, or redelivered after more than a minute, and no
//     other message has succeeded since it first failed. In a group that parks, Patience takes the place of the first
//     minute if the message would be poisoned, because a parked key waits for an operator.
//
// While the group is paused, a message that fails is given back, its failure does not count, and nothing is poisoned. The
// group handles single messages as probes, preferably messages that have not failed yet. It resumes after Successes
// successful probes.
//
// A pause protects a message until it has been failing for MaxPause. Then its retry policy continues, and the message is
// poisoned when the policy has no try left. The time of the first failure travels with the message, so a restart does not
// change this.
//
// These do not count as failures: [Permanent] errors, panics, handlers that end their goroutine, discards, snoozes, waits
// for a newer version, and other redeliveries that do not count. Each process has its own breakers.
//
// In a group that does not park, a retry policy of few and short tries may poison the first messages of an outage.
type BreakerPolicy struct {
	// Messages is how many different messages must fail. 0 means 10; a negative number turns the breaker off.
	Messages int
	// Share is the share of deliveries that must fail, from 0 to 1. 0 means 0.9.
	Share float64
	// Patience is how long the failures must last before the group pauses, unless a message is about to be poisoned. 0
	// means 5 s; a negative value means no wait.
	Patience time.Duration
	// Probe is the wait before the first probe. Each failed probe doubles it, up to MaxProbe. 0 means 1 s and 30 s.
	Probe, MaxProbe time.Duration
	// MaxPause is how long a message may have been failing and still be protected by a pause. 0 means four hours; a
	// negative value means for ever.
	MaxPause time.Duration
	// Successes is how many probes must succeed before the group resumes. They follow each other without a wait. A failure
	// of a message that had not failed before starts the count again. 0 means 3.
	Successes int
}

// NoBreaker returns the policy that turns the circuit breaker off.
func NoBreaker() BreakerPolicy { return BreakerPolicy{Messages: -1} }

// WithDefaults returns the policy with every zero field filled in.
func (p BreakerPolicy) WithDefaults() BreakerPolicy {
	p.Messages = cmp.Or(p.Messages, 10)
	p.Share = cmp.Or(p.Share, 0.9)
	p.Patience = cmp.Or(p.Patience, 5*time.Second)
	p.Probe = cmp.Or(p.Probe, time.Second)
	p.MaxProbe = cmp.Or(p.MaxProbe, max(30*time.Second, p.Probe))
	p.MaxPause = cmp.Or(p.MaxPause, 4*time.Hour)
	p.Successes = cmp.Or(p.Successes, 3)
	return p
}

// Validate returns an error if the policy is invalid.
func (p BreakerPolicy) Validate() error {
	p = p.WithDefaults()
	switch {
	case p.Share < 0 || p.Share > 1:
		return fmt.Errorf("bus: breaker policy: share %v; it is a share of 1", p.Share)
	case p.Probe < 0 || p.Successes < 0:
		return fmt.Errorf("bus: breaker policy: probe %s, successes %d; none of them can be negative", p.Probe, p.Successes)
	case p.MaxProbe < p.Probe:
		return fmt.Errorf("bus: breaker policy: the longest wait for a probe is %s, shorter than the first, %s", p.MaxProbe, p.Probe)
	default:
		return nil
	}
}

// BreakerState is the state of a group's circuit breaker.
type BreakerState string

// States of a circuit breaker.
const (
	BreakerClosed   = BreakerState(breaker.Closed)   // messages flow
	BreakerOpen     = BreakerState(breaker.Open)     // the group is paused
	BreakerHalfOpen = BreakerState(breaker.HalfOpen) // paused, and a probe is running
	BreakerHeld     = BreakerState("held")           // an operator has paused the group; see [Bus.SetPaused]
)

// BreakerChange describes a change of a group's circuit breaker. While an operator has paused the group, its changes are not
// reported; the state at the end of that pause is.
type BreakerChange struct {
	Group string
	State BreakerState
	Err   error         // the last failure; nil when it closes
	Wait  time.Duration // until the next probe, when it opens
	After time.Duration // how long the group was paused, when it closes or an operator resumes it
}

// probeTimeout is how long a probe may take if its handler has no longer timeout; probeGrace is added to it. A probe that
// takes longer counts as failed, and another one follows.
const probeTimeout, probeGrace = 30 * time.Second, 10 * time.Second

// newBreaker returns the group's circuit breaker.
func (g *group) newBreaker(p BreakerPolicy) *breaker.Breaker {
	p = p.WithDefaults()
	return breaker.New(breaker.Config{
		Messages:     p.Messages,
		Share:        p.Share,
		Patience:     p.Patience,
		Probe:        p.Probe,
		MaxProbe:     p.MaxProbe,
		MaxPause:     p.MaxPause,
		Successes:    p.Successes,
		Parks:        g.handler.parks(),
		Strict:       g.handler.Order == OrderedStrictly,
		Ordered:      g.handler.Order != Unordered,
		ProbeTimeout: max(g.handler.Timeout, probeTimeout) + probeGrace,
		Succeeded:    g.counts.handled.Load,
		Changed:      func(c breaker.Change) { g.breakerChanged(c, p.MaxPause) },
	})
}

// isBug reports whether the error is a bug of the handler rather than an outage.
func isBug(err error) bool {
	_, panicked := errors.AsType[*PanicError](err)
	return panicked || errors.Is(err, ErrGoexit)
}

// breakerChanged reports a change to the group's health, the log and the observers.
func (g *group) breakerChanged(c breaker.Change, spares time.Duration) {
	logger := g.bus.cfg.Logger
	change := BreakerChange{Group: g.name, State: BreakerState(c.To), Err: c.Err, Wait: c.Wait, After: c.After}
	if c.From == c.To {
		g.health.set(driver.PausedByOperator, operatorReason(c))
	} else {
		g.health.set(driver.PausedByBreaker, pauseReason(c, spares))
	}
	switch {
	case c.From == c.To && c.Held:
		logger.Warn("leat: group paused by an operator", "group", g.name)
		change.State = BreakerHeld
	case c.From == c.To:
		logger.Info("leat: group resumed by an operator", "group", g.name, "paused", c.After.Round(time.Millisecond), "state", string(c.To))
	case c.To == breaker.Closed && !c.Held:
		logger.Info("leat: group resumed", "group", g.name, "paused", c.After.Round(time.Millisecond))
	case c.From == breaker.Closed:
		logger.Warn("leat: group paused", "group", g.name, "reason", "nearly everything fails", "error", c.Err, "probe_in", c.Wait)
	}
	if c.From != c.To {
		logger.LogAttrs(context.Background(), slog.LevelDebug, "leat: circuit breaker changed",
			slog.String("group", g.name), slog.String("state", string(c.To)))
	}
	if c.Held && change.State != BreakerHeld {
		return
	}
	for _, o := range g.bus.cfg.Observers {
		o.BreakerChanged(change)
	}
}

// operatorReason returns what the health of a group says that an operator has paused, nil if none has.
func operatorReason(c breaker.Change) error {
	if !c.Held {
		return nil
	}
	return fmt.Errorf("paused by an operator since %s; leat groups resume lets it continue", time.Now().Format(time.RFC3339))
}

// SetPaused pauses a group of this bus, or resumes it, as an operator's leat groups pause does. A paused group takes no message from
// the transport until it is resumed, or the bus ends; handlers that run go on, and nothing counts as a failure. Other processes of the
// group continue. Without a durable transport, messages that wait in a paused group are lost when the bus is closed. The circuit
// breaker neither ends the pause nor probes meanwhile. It does not block, does nothing if the group is in that state already, and
// returns an error that matches [driver.ErrNotFound] if the bus has no such group. It may be called before Run.
func (b *Bus) SetPaused(group string, paused bool) error {
	for _, g := range b.groups.all() {
		switch {
		case g.name != group:
			continue
		case paused:
			g.breaker.Hold()
		default:
			g.breaker.Release()
		}
		return nil
	}
	return fmt.Errorf("bus: group %q: %w", group, driver.ErrNotFound)
}

// pauseReason returns what the health of a paused group says, nil if the group is not paused.
func pauseReason(c breaker.Change, spares time.Duration) error {
	if c.To == breaker.Closed {
		return nil
	}
	cost := "at no cost"
	if spares >= 0 {
		cost = fmt.Sprintf("at no cost until it has been failing for %s", spares)
	}
	return fmt.Errorf("paused since %s, because nearly everything fails; a message is tried every %s, %s, and the last failed with: %w",
		c.Since.Format(time.RFC3339), c.Wait, cost, c.Err)
}
