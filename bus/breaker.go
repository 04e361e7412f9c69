package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// BreakerPolicy is a group's circuit breaker. When nearly everything fails, which is what a dependency
// that is away looks like, the group pauses itself: it takes nothing more in, what its handlers fail
// with meanwhile is given back at no cost, and nothing of it is poisoned. Now and then it lets one
// message through as a probe, and when probes succeed it goes on. The zero value is the default.
//
// The breaker opens when so many different messages have failed within the window, no more than one
// outcome in ten since the first of them was a success, and that has gone on for a while, or the next of
// them would be poisoned. A message that first failed before another succeeded has failed for itself and
// does not count, nor do [Permanent] errors, panics, which are bugs and no outages, discards, snoozes and
// redeliveries at no cost. So neither messages that always fail nor a short outage pause a group; a policy
// of few and short tries may poison the first messages of an outage, before it is one.
//
// Where nothing but messages that always fail is left, the breaker can't tell that from an outage. So it
// spares messages for as long as MaxPause: after that a probe that fails counts as a try, and what has no
// try left is poisoned, no more than one message a probe. Each process has breakers of its own.
type BreakerPolicy struct {
	// Messages is how many different messages must have failed. 0 means 10; with a negative number
	// the group never pauses.
	Messages int
	// Share is how many of the deliveries must have failed. 0 means 0.9.
	Share float64
	// Window is how long a failure counts. 0 means a minute.
	Window time.Duration
	// Patience is how long nearly everything must have failed, where no message is about to be
	// poisoned. 0 means 5 s; a negative value means none.
	Patience time.Duration
	// Probe is how long the first probe is waited for. Each one that fails doubles it, up to
	// MaxProbe. 0 means 1 s and 30 s.
	Probe, MaxProbe time.Duration
	// MaxPause is how long a pause costs nothing. After it, a probe that fails counts as a try, and
	// when no message has come for eleven times MaxProbe, the pause ends. 0 means an hour; a negative
	// value means that a pause lasts until probes succeed.
	MaxPause time.Duration
	// Successes is how many probes must succeed, with no failure between them of a message that had
	// not failed before. They follow each other at once. 0 means 3.
	Successes int
}

// NoBreaker is the policy of a group that never pauses itself.
func NoBreaker() BreakerPolicy { return BreakerPolicy{Messages: -1} }

// WithDefaults is the policy with every zero field filled in.
func (p BreakerPolicy) WithDefaults() BreakerPolicy {
	if p.Messages == 0 {
		p.Messages = 10
	}
	if p.Share == 0 {
		p.Share = 0.9
	}
	if p.Window == 0 {
		p.Window = time.Minute
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
		p.MaxPause = time.Hour
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
	case p.Window < 0 || p.Probe < 0 || p.Successes < 0:
		return fmt.Errorf("bus: breaker policy: window %s, probe %s, successes %d; none of them can be negative", p.Window, p.Probe, p.Successes)
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
	BreakerClosed   BreakerState = "closed"    // messages flow
	BreakerOpen     BreakerState = "open"      // the group is paused
	BreakerHalfOpen BreakerState = "half-open" // paused, and a probe is under way
)

// BreakerChange is a new state of a group's circuit breaker.
type BreakerChange struct {
	Group string
	State BreakerState
	Err   error         // what failed last; nil when it closes
	Wait  time.Duration // until the next probe, when it opens
	After time.Duration // how long the group was paused, when it closes
}

// BreakerObserver is an [Observer] that is told of circuit breakers, too. The method must be quick and
// must not block; for one group it is called one change after the other.
type BreakerObserver interface {
	BreakerChanged(c BreakerChange)
}

// TriesLeft says whether a failed try was the last that its policy has.
type TriesLeft int

// Whether there are tries left.
const (
	MoreTries TriesLeft = iota
	LastTry
)

// Failed tells the group's circuit breaker of a failed try whose error is not permanent. It answers nil
// where the try counts, and while the group is paused what the delivery has to end with: it is given back
// at no cost. The retry step calls it.
func (d *Delivery) Failed(err error, left TriesLeft) error {
	if d.group == nil {
		return nil
	}
	return d.group.breaker.failed(d, err, left)
}

// breakerPart is what a group reports as degraded while it is paused.
const breakerPart = "circuit breaker"

// breaker is a group's circuit breaker. A worker reads one pointer per delivery; successes cost nothing
// here, as the group counts them anyway.
type breaker struct {
	group  *group
	policy BreakerPolicy
	intake atomic.Pointer[intake] // set while the bus runs

	mu     sync.Mutex
	state  BreakerState
	parent context.Context // ends when workers must take no more

	// The present run of failures, while the breaker is closed.
	since   time.Time
	last    time.Time
	run     int    // its number
	fails   int    // deliveries
	before  uint64 // handled deliveries, at its beginning
	failing map[string]time.Time

	// The present pause.
	paused    time.Time
	cause     error
	interval  time.Duration
	successes int
	timer     *time.Timer
	held      int // messages that were given back for it
}

// intake is what workers take messages in through: a context that ends when the group pauses, or the
// pause.
type intake struct {
	ctx    context.Context
	cancel context.CancelFunc
	turn   chan struct{} // holds a token when it is time for a probe; nil unless the group is paused
	over   chan struct{} // closed at the end of the pause
}

func (b *breaker) init(g *group, p BreakerPolicy) {
	b.group, b.policy, b.state = g, p.WithDefaults(), BreakerClosed
}

func (b *breaker) off() bool { return b.policy.Messages < 0 }

// start lets workers take in until parent ends.
func (b *breaker) start(parent context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parent = parent
	b.letIn()
}

func (b *breaker) letIn() {
	in := &intake{ctx: b.parent, cancel: func() {}}
	if !b.off() {
		in.ctx, in.cancel = context.WithCancel(b.parent)
	}
	b.intake.Store(in)
}

// isPaused reports whether the group takes nothing in.
func (b *breaker) isPaused() bool {
	in := b.intake.Load()
	return in != nil && in.turn != nil
}

func (b *breaker) failed(d *Delivery, err error, left TriesLeft) error {
	if _, bug := errors.AsType[*PanicError](err); bug || b.off() {
		return nil
	}
	now := time.Now()
	if d.FailedSince.IsZero() { // there is no retry step
		d.FailedSince = now
	}
	first := !d.failed
	d.failed = true
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == BreakerClosed {
		if !b.count(d, first, now) || left == MoreTries && now.Sub(b.since) < b.policy.Patience {
			return nil
		}
		b.open(now, err)
	}
	if d.probe && b.state == BreakerHalfOpen {
		b.openAgain(d, err)
	}
	if d.probe && b.overdue(now) {
		return nil
	}
	if !d.failedBefore() {
		b.held++
	}
	return &Redelivery{After: b.later(), Cost: CostsNothing, Err: fmt.Errorf("the group is paused, because nearly everything fails: %w", err)}
}

// failedBefore reports whether the message has failed in an earlier delivery.
func (d *Delivery) failedBefore() bool { return d.FailedSince.Before(d.started) }

// count enters a failure and reports whether nearly everything fails.
func (b *breaker) count(d *Delivery, first bool, now time.Time) bool {
	fresh := first && !d.failedBefore()
	handled := b.group.counts.handled.Load()
	share := float64(b.fails) / float64(uint64(b.fails)+handled-b.before) //nolint:gosec // a count
	if b.fails > 0 && (now.Sub(b.last) > b.policy.Window || share < b.policy.Share) {
		b.fails = 0
	}
	if b.fails == 0 {
		if !fresh {
			return false
		}
		b.run++
		b.since, b.before, b.failing = d.FailedSince, handled, make(map[string]time.Time)
	}
	if !fresh && d.run != b.run && !d.FailedSince.After(b.since) {
		return false // it failed before others succeeded
	}
	if d.run = b.run; first {
		b.fails++
	}
	b.last = now
	id := MessageID(d.Message)
	if _, ok := b.failing[id]; ok || len(b.failing) < b.policy.Messages {
		b.failing[id] = now
	}
	if len(b.failing) < b.policy.Messages {
		return false
	}
	maps.DeleteFunc(b.failing, func(_ string, at time.Time) bool { return now.Sub(at) > b.policy.Window })
	return len(b.failing) >= b.policy.Messages
}

// open pauses the group.
func (b *breaker) open(now time.Time, err error) {
	b.paused, b.cause, b.interval, b.successes, b.held = now, err, b.policy.Probe, 0, 0
	b.state = BreakerOpen
	old := b.intake.Load()
	b.intake.Store(&intake{turn: make(chan struct{}, 1), over: make(chan struct{})})
	old.cancel()
	b.wait()
	b.group.bus.cfg.Logger.Warn("leat: group paused, because nearly everything fails",
		"group", b.group.name, "since", b.since, "err", err, "probe_in", b.interval)
}

// openAgain waits longer for the next probe than for this one, which has failed. Where others have
// succeeded, one that had failed before says nothing.
func (b *breaker) openAgain(d *Delivery, err error) {
	if b.successes > 0 && d.failedBefore() {
		return
	}
	b.cause, b.successes = err, 0
	b.interval = min(2*b.interval, b.policy.MaxProbe)
	b.state = BreakerOpen
	b.wait()
}

// overdue reports whether the pause has lasted for longer than it may cost nothing.
func (b *breaker) overdue(now time.Time) bool {
	return b.policy.MaxPause >= 0 && now.Sub(b.paused) >= b.policy.MaxPause
}

// later is when a message comes again that failed while the group is paused. What failed should not
// stand before what has not when the next probe is taken, and not come back all at once.
func (b *breaker) later() time.Duration {
	after := b.interval
	if b.group.handler.Order == Unordered {
		after = min(time.Duration(max(b.held, 1))*b.interval, b.longest())
	}
	return after/2 + rand.N(after/2+1)
}

// longest is the longest wait of a message that failed while the group is paused.
func (b *breaker) longest() time.Duration { return 10 * b.policy.MaxProbe }

// wait sets the time of the next probe.
func (b *breaker) wait() {
	turn := b.intake.Load().turn
	b.timer = time.AfterFunc(b.interval, func() { turn <- struct{}{} })
	b.tell(BreakerChange{State: b.state, Err: b.cause, Wait: b.interval})
}

// probe begins when a worker has the turn.
func (b *breaker) probe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state = BreakerHalfOpen
	b.tell(BreakerChange{State: b.state, Err: b.cause})
}

// probing reports whether the worker that probes has to go on.
func (b *breaker) probing() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == BreakerHalfOpen
}

// succeeded counts a probe.
func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.successes++; b.state == BreakerHalfOpen && b.successes >= b.policy.Successes {
		b.close()
	}
}

// probeContext is how long a probe's message is waited for. Without a success so far it is for as long as a
// pause costs nothing: what failed comes again, perhaps from another process, and to go on for lack of
// messages would be to poison it. After a success, silence is no reason to stay paused.
func (b *breaker) probeContext(parent context.Context) (context.Context, context.CancelFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.successes > 0:
		return context.WithTimeout(parent, 2*b.policy.MaxProbe)
	case b.policy.MaxPause < 0:
		return context.WithCancel(parent)
	default:
		left := b.policy.MaxPause - time.Since(b.paused)
		return context.WithTimeout(parent, max(left, b.longest()+b.policy.MaxProbe))
	}
}

// nothingThere ends a pause for lack of messages.
func (b *breaker) nothingThere() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == BreakerHalfOpen {
		b.close()
	}
}

// close ends the pause.
func (b *breaker) close() {
	took := time.Since(b.paused)
	b.fails, b.failing = 0, nil
	b.state = BreakerClosed
	old := b.intake.Load()
	b.letIn()
	close(old.over)
	b.tell(BreakerChange{State: b.state, After: took})
	b.group.bus.cfg.Logger.Info("leat: group goes on", "group", b.group.name, "paused", took.Round(time.Millisecond))
}

// stop ends the breaker's part in a run.
func (b *breaker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer != nil {
		b.timer.Stop()
	}
}

// tell reports a change. The caller holds b.mu, so that changes come in their order.
func (b *breaker) tell(c BreakerChange) {
	c.Group = b.group.name
	b.group.health.set(breakerPart, b.reason())
	b.group.bus.cfg.Logger.LogAttrs(context.Background(), slog.LevelDebug, "leat: circuit breaker",
		slog.String("group", c.Group), slog.String("state", string(c.State)))
	for _, o := range b.group.bus.cfg.Observers {
		if o, ok := o.(BreakerObserver); ok {
			o.BreakerChanged(c)
		}
	}
}

// reason is what the health says of a paused group.
func (b *breaker) reason() error {
	if b.state == BreakerClosed {
		return nil
	}
	cost := "at no cost"
	if b.overdue(time.Now()) {
		cost = fmt.Sprintf("and after %s that counts as a try", b.policy.MaxPause)
	}
	return fmt.Errorf("paused since %s, because nearly everything fails; a message is tried every %s, %s, and the last failed with: %w",
		b.paused.Format(time.RFC3339), b.interval, cost, b.cause)
}

// counts reports whether an outcome that no step has reported is a failure to the breaker.
func countsAsFailure(outcome Outcome, err error) bool {
	if err == nil || IsPermanent(err) {
		return false
	}
	if r, ok := AsRedelivery(err); ok {
		return outcome == Redelivered && r.Cost == CostsAttempt && r.Err != nil && !errors.Is(r.Err, ErrInterrupted)
	}
	return outcome == Redelivered || outcome == Poisoned
}
