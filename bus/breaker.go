package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/leatbus/leat/internal/breaker"
)

// BreakerPolicy configures a group's circuit breaker. It tells an outage of a dependency from a bad message by
// one question: has another message of the group succeeded in this process since this one first failed? The
// zero value is the default policy.
//
// The group pauses in two cases:
//
//  1. So many different messages fail, with next to no success between them, and that lasts for Patience
//     or the next of them would be poisoned. In a strictly ordered group one message is enough.
//  2. A message that has been failing for over a minute would be poisoned, or redelivered after more than a
//     minute, and no other message has succeeded since it first failed. A group that parks asks this before
//     it poisons a message of any age, because a parked key waits for an operator.
//
// While the group is paused, what fails is given back at no cost and nothing is poisoned. The group lets single
// messages through as probes, those that have not failed yet first, and goes on when probes succeed.
//
// A pause spares a message until it has been failing for MaxPause. Then its retry policy goes on, and the
// message is poisoned when that ends. The time of the first failure travels with the message, so a restart
// neither shortens nor prolongs this.
//
// [Permanent] errors, panics, handlers that end their goroutine, discards, snoozes, waits for a newer version and
// other redeliveries at no cost do not count. Each process has its own breakers.
//
// A policy of few and short tries may poison the first messages of an outage in a group that does not park.
type BreakerPolicy struct {
	// Messages is how many different messages must fail. 0 means 10; with a negative number the group
	// never pauses.
	Messages int
	// Share is how many of the deliveries must fail. 0 means 0.9.
	Share float64
	// Patience is how long nearly everything must fail before the group pauses, unless a message is about
	// to be poisoned. 0 means 5 s; a negative value means none.
	Patience time.Duration
	// Probe is the wait before the first probe. Each probe that fails doubles it, up to MaxProbe. 0 means
	// 1 s and 30 s.
	Probe, MaxProbe time.Duration
	// MaxPause is how long a message may have been failing and still be spared. 0 means four hours; with a
	// negative value a pause spares messages for as long as it lasts.
	MaxPause time.Duration
	// Successes is how many probes must succeed, with no failure between them of a message that had
	// not failed before. They follow each other at once. 0 means 3.
	Successes int
}

// NoBreaker returns the policy of a group that never pauses itself.
func NoBreaker() BreakerPolicy { return BreakerPolicy{Messages: -1} }

// WithDefaults returns the policy with every zero field filled in.
func (p BreakerPolicy) WithDefaults() BreakerPolicy {
	if p.Messages == 0 {
		p.Messages = 10
	}
	if p.Share == 0 {
		p.Share = 0.9
	}
	if p.Patience == 0 {
		p.Patience = 5 * time.Second
	}
	if p.Probe == 0 {
		p.Probe = time.Second
	}
	if p.MaxProbe == 0 {
		p.MaxProbe = max(30*time.Second, p.Probe)
	}
	if p.MaxPause == 0 {
		p.MaxPause = 4 * time.Hour
	}
	if p.Successes == 0 {
		p.Successes = 3
	}
	return p
}

// Validate says what is wrong with the policy.
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

// BreakerState is what a group's circuit breaker does.
type BreakerState string

// States of a circuit breaker.
const (
	BreakerClosed   = BreakerState(breaker.Closed)   // messages flow
	BreakerOpen     = BreakerState(breaker.Open)     // the group is paused
	BreakerHalfOpen = BreakerState(breaker.HalfOpen) // paused, and a probe is under way
)

// BreakerChange is a new state of a group's circuit breaker.
type BreakerChange struct {
	Group string
	State BreakerState
	Err   error         // what failed last; nil when it closes
	Wait  time.Duration // until the next probe, when it opens
	After time.Duration // how long the group was paused, when it closes
}

// breakerPart is what a group reports as degraded while it is paused.
const breakerPart = "circuit breaker"

// probeTimeout is how long a probe may take in a handler without a timeout of its own, probeGrace what
// is added to that. A probe that takes longer passes its turn on.
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

// isBug reports whether the error is a fault of the handler, and no outage.
func isBug(err error) bool {
	_, panicked := errors.AsType[*PanicError](err)
	return panicked || errors.Is(err, ErrGoexit)
}

// breakerChanged shows a change in the health, the log and to the observers.
func (g *group) breakerChanged(c breaker.Change, spares time.Duration) {
	logger := g.bus.cfg.Logger
	g.health.set(breakerPart, pauseReason(c, spares))
	switch {
	case c.To == breaker.Closed:
		logger.Info("leat: group resumed", "group", g.name, "paused", c.After.Round(time.Millisecond))
	case c.From == breaker.Closed:
		logger.Warn("leat: group paused", "group", g.name, "reason", "nearly everything fails", "error", c.Err, "probe_in", c.Wait)
	}
	logger.LogAttrs(context.Background(), slog.LevelDebug, "leat: circuit breaker changed",
		slog.String("group", g.name), slog.String("state", string(c.To)))
	for _, o := range g.bus.cfg.Observers {
		o.BreakerChanged(BreakerChange{Group: g.name, State: BreakerState(c.To), Err: c.Err, Wait: c.Wait, After: c.After})
	}
}

// pauseReason returns what the health shows of a paused group, nil of one that is not.
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
