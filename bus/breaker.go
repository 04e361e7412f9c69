package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
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

// breakerPart is what a group reports as degraded while it is paused.
const breakerPart = "circuit breaker"

const (
	// outageAge is how long a message must have been failing before the breaker asks whether others succeed.
	outageAge = time.Minute
	// probeTimeout is how long a probe may take in a handler without a timeout of its own, probeGrace what
	// is added to that. A probe that takes longer passes its turn on.
	probeTimeout, probeGrace = 30 * time.Second, 10 * time.Second
)

// breaker is a group's circuit breaker. A worker reads one pointer per delivery. A success costs nothing here: the
// group counts successes anyway, and the breaker compares the count when something fails.
type breaker struct {
	group  *group
	policy BreakerPolicy
	intake atomic.Pointer[intake] // set while the bus runs

	// mu guards everything below. Observers and the logger are called with it held, so that changes are
	// reported in their order.
	mu     sync.Mutex
	state  BreakerState
	parent context.Context // ends when workers must take no more

	// What the breaker knows of successes. Each failure takes a sample of the group's count.
	handled uint64    // the count at the last sample
	sampled time.Time // when that was
	success time.Time // a message has succeeded after this time; zero if none has

	// The present run of failures, while the breaker is closed.
	since   time.Time
	last    time.Time // its latest failure
	run     int       // its number
	fails   int       // deliveries
	before  uint64    // handled deliveries, at its beginning
	failing map[string]struct{}

	// The present pause.
	paused    time.Time
	cause     error
	interval  time.Duration // until the next probe
	successes int
	timer     *time.Timer // hands out the turn to probe
	probed    *Delivery   // the probe that has the turn; nil while a worker waits for its message
	deadline  *time.Timer // of that probe
	held      int         // messages that failed for the first time, and were given back
	repeats   int         // probes in a row that had failed before
}

// intake is what workers take messages in through: a context that ends when the group pauses, or the
// pause.
type intake struct {
	ctx    context.Context
	cancel context.CancelFunc
	turn   chan struct{} // holds a token when it is time for a probe; nil unless the group is paused
	over   chan struct{} // closed at the end of the pause
}

// pass hands the turn to probe to the next worker.
func (in *intake) pass() {
	select {
	case in.turn <- struct{}{}:
	default: // it is there
	}
}

func (b *breaker) init(g *group, p BreakerPolicy) {
	b.group, b.policy, b.state = g, p.WithDefaults(), BreakerClosed
}

func (b *breaker) off() bool { return b.policy.Messages < 0 }

// start lets workers take in until parent ends.
func (b *breaker) start(parent context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parent, b.sampled = parent, time.Now()
	b.admit()
}

func (b *breaker) admit() {
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

// failed is told of a failed try, the first of its delivery or a later one. It returns nil if the retry policy
// goes on, and otherwise how the delivery must end: it is given back at no cost.
func (b *breaker) failed(d *Delivery, err error, next nextTry, first bool) error {
	if b.off() || isBug(err) {
		return nil
	}
	now := time.Now()
	age := now.Sub(d.FailedSince)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sample(now)
	if b.state == BreakerClosed {
		if b.spent(age) {
			return nil
		}
		pause := b.count(d, first, now) && (next.last || now.Sub(b.since) >= b.policy.Patience)
		if !pause && !b.succeededSince(d.FailedSince) {
			var wait time.Duration
			if pause, wait = b.doubt(next, age); wait > 0 {
				return &Redelivery{After: wait, Uncounted: true, Err: err}
			}
		}
		if !pause {
			return nil
		}
		b.open(now, err)
	}
	if b.probed == d && b.state == BreakerHalfOpen {
		b.reopen(err, !d.failedBefore())
	}
	if b.spent(age) {
		return nil
	}
	if !d.failedBefore() {
		b.held++
	}
	return &Redelivery{After: b.later(), Uncounted: true, Err: fmt.Errorf("the group is paused, because nearly everything fails: %w", err)}
}

// isBug reports whether the error is a fault of the handler, and no outage.
func isBug(err error) bool {
	_, panicked := errors.AsType[*PanicError](err)
	return panicked || errors.Is(err, ErrGoexit)
}

// sample compares the group's count of successes with that of the last failure.
func (b *breaker) sample(now time.Time) {
	if handled := b.group.counts.handled.Load(); handled != b.handled {
		b.success, b.handled = b.sampled, handled
	}
	b.sampled = now
}

// succeededSince reports whether a message has succeeded in this process since t, a time at which a message
// failed, or one before the process began.
func (b *breaker) succeededSince(t time.Time) bool {
	return !b.success.IsZero() && !b.success.Before(t)
}

// spent reports whether a message has been failing for longer than it is spared.
func (b *breaker) spent(age time.Duration) bool {
	return b.policy.MaxPause >= 0 && age >= b.policy.MaxPause
}

// doubt decides on a message that may be bad or may fail because of an outage: no other has succeeded since it first
// failed. If the policy would now poison it or delay it for long, the group pauses. A message that has failed for a short
// time only is given back first, and decided on when it is older.
func (b *breaker) doubt(next nextTry, age time.Duration) (pause bool, wait time.Duration) {
	var old time.Duration
	switch {
	case next.last && b.group.handler.parks():
		old = max(b.policy.Patience, 0)
	case next.last && age >= outageAge:
		return true, 0
	case !next.last && !next.asked && next.after > outageAge:
		old = outageAge
	default:
		return false, 0
	}
	if age >= old {
		return true, 0
	}
	return false, old - age
}

// failedBefore reports whether the message has failed in an earlier delivery.
func (d *Delivery) failedBefore() bool { return d.FailedSince.Before(d.started) }

// count enters a failure and reports whether nearly everything fails. A message that first failed before
// others succeeded has failed for itself and does not count.
func (b *breaker) count(d *Delivery, first bool, now time.Time) bool {
	share := float64(b.fails) / float64(uint64(b.fails)+b.handled-b.before) //nolint:gosec // a count
	if b.fails > 0 && (share < b.policy.Share || now.Sub(b.last) > max(b.policy.Patience, outageAge)) {
		b.fails = 0 // others succeed, or what failed is settled by now; see doubt for messages that fail seldom
	}
	b.last = now
	alone := !b.succeededSince(d.FailedSince)
	if b.fails == 0 {
		if !alone {
			return false
		}
		b.run++
		b.since, b.before, b.failing = now, b.handled, make(map[string]struct{})
	}
	if !alone && d.run != b.run && d.FailedSince.Before(b.since) {
		return false
	}
	if d.run = b.run; first {
		b.fails++
	}
	if len(b.failing) < b.policy.Messages {
		b.failing[d.id] = struct{}{}
	}
	return len(b.failing) >= b.threshold()
}

// threshold is how many different messages must fail.
func (b *breaker) threshold() int {
	if b.group.handler.Order == OrderedStrictly && b.group.handler.parks() {
		return 1 // no other can be handed out
	}
	return b.policy.Messages
}

// open pauses the group.
func (b *breaker) open(now time.Time, err error) {
	b.paused, b.cause, b.interval, b.successes, b.held, b.repeats = now, err, b.policy.Probe, 0, 0, 0
	b.state = BreakerOpen
	old := b.intake.Load()
	b.intake.Store(&intake{turn: make(chan struct{}, 1), over: make(chan struct{})})
	old.cancel()
	b.wait()
	b.group.bus.cfg.Logger.Warn("leat: group paused, because nearly everything fails",
		"group", b.group.name, "err", err, "probe_in", b.interval)
}

// reopen waits longer for the next probe than for this one, which has failed, for the first time or again. If others
// have succeeded, one that had failed before says nothing.
func (b *breaker) reopen(err error, first bool) {
	if b.successes > 0 && !first {
		return
	}
	b.repeats++
	if first {
		b.repeats = 0
	}
	b.cause, b.successes = err, 0
	b.interval = min(2*b.interval, b.policy.MaxProbe)
	b.state = BreakerOpen
	b.wait()
}

// later is when a message is redelivered that failed while the group is paused. In an unordered group it must
// not stand before what has not failed when the next probe is taken; the more have failed, and the more often
// the same fail, the longer it waits, for up to ten times MaxProbe.
func (b *breaker) later() time.Duration {
	after := b.interval
	if b.group.handler.Order == Unordered {
		rounds := max(b.held, 1<<min(b.repeats, 8), 1)
		after = min(time.Duration(rounds)*b.interval, b.longest())
	}
	return after/2 + rand.N(after/2+1)
}

// longest is the longest wait of a message that failed while the group is paused.
func (b *breaker) longest() time.Duration { return 10 * b.policy.MaxProbe }

// wait sets the time of the next probe.
func (b *breaker) wait() {
	b.timer = time.AfterFunc(b.interval, b.intake.Load().pass)
	b.report(BreakerChange{State: b.state, Err: b.cause, Wait: b.interval})
}

// probe begins when a worker has the turn.
func (b *breaker) probe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == BreakerOpen {
		b.state = BreakerHalfOpen
		b.report(BreakerChange{State: b.state, Err: b.cause})
	}
}

// handedOut is called when the worker that has the turn of a pause has got its message.
func (b *breaker) handedOut(in *intake, d *Delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.intake.Load() != in { // other probes have ended the pause meanwhile
		return
	}
	limit := max(b.group.handler.Timeout, probeTimeout) + probeGrace
	d.probe, b.probed = true, d
	id := d.id
	b.deadline = time.AfterFunc(limit, func() {
		b.overran(d, fmt.Errorf("message %s has not ended after %s", id, limit))
	})
}

// overran takes the turn from a probe that does not end. It belongs to its worker and is not looked into.
func (b *breaker) overran(d *Delivery, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.probed != d {
		return
	}
	b.probed = nil
	if b.state == BreakerHalfOpen { // it may still succeed, and has not failed
		b.cause = err
		b.interval = min(2*b.interval, b.policy.MaxProbe)
		b.state = BreakerOpen
		b.wait()
	}
}

// ended is called when a probe has ended, however it did. Whoever has the turn passes it on, unless
// the next probe has to wait.
func (b *breaker) ended(d *Delivery, outcome Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	turn := b.probed == d
	if turn {
		b.probed = nil
		b.deadline.Stop()
	}
	if b.state == BreakerClosed {
		return
	}
	if outcome == Handled {
		b.successes++
	}
	switch {
	case b.successes >= b.policy.Successes:
		b.close()
	case turn && b.state == BreakerHalfOpen:
		b.intake.Load().pass()
	}
}

// probeContext is how long a probe's message is waited for. Without a success so far it is for as long as a
// pause spares messages: what failed is redelivered, perhaps to another process. After a success, silence is no
// reason to stay paused.
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

// endPause ends a pause for lack of messages.
func (b *breaker) endPause(in *intake) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != BreakerClosed && b.intake.Load() == in {
		b.close()
	}
}

// close ends the pause.
func (b *breaker) close() {
	took := time.Since(b.paused)
	b.fails, b.failing = 0, nil
	b.state = BreakerClosed
	b.timer.Stop()
	old := b.intake.Load()
	b.admit()
	close(old.over)
	b.report(BreakerChange{State: b.state, After: took})
	b.group.bus.cfg.Logger.Info("leat: group goes on", "group", b.group.name, "paused", took.Round(time.Millisecond))
}

// stop ends the breaker's part in a run.
func (b *breaker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, timer := range []*time.Timer{b.timer, b.deadline} {
		if timer != nil {
			timer.Stop()
		}
	}
}

// report tells the health, the log and the observers of a change.
func (b *breaker) report(c BreakerChange) {
	c.Group = b.group.name
	b.group.health.set(breakerPart, b.reason())
	b.group.bus.cfg.Logger.LogAttrs(context.Background(), slog.LevelDebug, "leat: circuit breaker",
		slog.String("group", c.Group), slog.String("state", string(c.State)))
	for _, o := range b.group.bus.cfg.Observers {
		o.BreakerChanged(c)
	}
}

// reason is what the health says of a paused group.
func (b *breaker) reason() error {
	if b.state == BreakerClosed {
		return nil
	}
	cost := "at no cost"
	if b.policy.MaxPause >= 0 {
		cost = fmt.Sprintf("at no cost until it has been failing for %s", b.policy.MaxPause)
	}
	return fmt.Errorf("paused since %s, because nearly everything fails; a message is tried every %s, %s, and the last failed with: %w",
		b.paused.Format(time.RFC3339), b.interval, cost, b.cause)
}
