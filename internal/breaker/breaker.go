// Package breaker is a circuit breaker that tells an outage of a dependency from a bad message.
//
// It asks one question: has another message of the group succeeded in this process since this one first failed? The rules
// are in the documentation of bus.BreakerPolicy. The package knows messages by their ids and times only.
//
//	closed ──── nearly everything fails, or a message would be poisoned or delayed
//	   ▲        for long and no other has succeeded since it first failed ───────────► open
//	   │                                                                                │ ▲
//	   │                                                      a worker has the turn     │ │ the probe fails,
//	   │                                                      to probe                  ▼ │ or takes too long
//	   └──────────── probes succeed, or there is nothing to probe with ◄────────── half-open
//
// In the state open, one worker at a time has the turn to probe: it takes one message. A worker that has it either passes
// it on when the probe ends, or gives it back to the timer when the probe fails.
package breaker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Config configures a Breaker. All fields must be set.
type Config struct {
	Messages  int           // how many different messages must fail; negative turns the breaker off
	Share     float64       // of the deliveries that must fail
	Patience  time.Duration // how long nearly everything must fail, unless a message is about to be poisoned
	Probe     time.Duration // wait before the first probe
	MaxProbe  time.Duration // the longest wait before a probe
	MaxPause  time.Duration // how long a message may have been failing and still be spared; negative means for ever
	Successes int           // how many probes must succeed

	Parks   bool // a poisoned message holds back the later ones of its key
	Strict  bool // one message of the group is out at a time
	Ordered bool // a message that is redelivered comes before the later ones

	// ProbeTimeout is how long a probe may take before its turn is passed on.
	ProbeTimeout time.Duration
	// Succeeded returns how many messages of the group have succeeded in this process.
	Succeeded func() uint64
	// Changed is called with each change of the state, one after the other. It must not call the Breaker, and must not
	// block.
	Changed func(Change)
}

// State is what a Breaker does.
type State string

// States of a Breaker.
const (
	Closed   State = "closed"    // messages flow
	Open     State = "open"      // the group is paused
	HalfOpen State = "half-open" // paused, and a probe is under way
)

// Change is a change of the state.
type Change struct {
	From, To State
	Err      error         // what failed last; nil when it closes
	Wait     time.Duration // until the next probe, when it opens
	After    time.Duration // how long the group was paused, when it closes
	Since    time.Time     // when the pause began; zero when it closes
}

// Message is what a Breaker knows of a delivery. It belongs to the delivery's goroutine.
type Message struct {
	ID      string
	Started time.Time // when its delivery began

	failed bool // in this delivery
	probe  bool // it shows whether a paused group can go on
	run    int  // the run of failures that it belongs to
}

// Failed reports whether the message has failed in this delivery.
func (m *Message) Failed() bool { return m.failed }

// Probe reports whether the message is a probe.
func (m *Message) Probe() bool { return m.probe }

// Failure is a failed try of a message.
type Failure struct {
	Err   error
	Since time.Time     // when the message first failed, in any process
	Next  time.Duration // until the next try by the retry policy
	Last  bool          // there is no next try: the message would be poisoned
	Asked bool          // the handler asked for Next
	Bug   bool          // it is a fault of the handler, and no outage
}

func (f Failure) before(m *Message) bool { return f.Since.Before(m.Started) }

// Verdict is what follows a failed try. The zero Verdict lets the retry policy continue.
type Verdict struct {
	Spared bool          // the try does not count, and the message is redelivered
	After  time.Duration // until then
	Paused bool          // because the group is paused
}

// outageAge is how long a message must have been failing before the breaker asks whether others succeed.
const outageAge = time.Minute

// Breaker is a group's circuit breaker. A worker reads one pointer for each delivery. A success costs nothing here: the
// group counts successes anyway, and the breaker compares the count when something fails. All methods may be called
// concurrently.
type Breaker struct {
	cfg    Config
	intake atomic.Pointer[Intake] // nil before Start

	// mu guards everything below. Changed is called with it locked, so that changes are reported in their order.
	mu     sync.Mutex
	state  State
	parent context.Context // ends when workers must take no more

	// What the breaker knows of successes. Each failure takes a sample of the group's count.
	handled uint64    // the count at the last sample
	sampled time.Time // when that was
	success time.Time // a message has succeeded after this time; zero if none has

	// The present run of failures, in the state closed.
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
	probed    *Message    // the probe that has the turn; nil while a worker waits for its message
	deadline  *time.Timer // of that probe
	spared    int         // messages that failed for the first time, and were given back
	repeats   int         // probes in a row that had failed before
}

// Intake is what workers take messages in through. Another one replaces it when the state changes between closed and
// another.
type Intake struct {
	ctx    context.Context
	cancel context.CancelFunc
	turn   chan struct{} // holds a token when it is time for a probe; nil in the state closed
	over   chan struct{} // closed at the end of the pause
}

// Paused reports whether the group is paused.
func (in *Intake) Paused() bool { return in.turn != nil }

// Context ends when the group pauses. It is nil for a paused group.
func (in *Intake) Context() context.Context { return in.ctx }

// Over is closed at the end of the pause.
func (in *Intake) Over() <-chan struct{} { return in.over }

// Turn gives the turn to probe to one worker.
func (in *Intake) Turn() <-chan struct{} { return in.turn }

// pass hands the turn to probe to the next worker.
func (in *Intake) pass() {
	select {
	case in.turn <- struct{}{}:
	default: // it is there
	}
}

// New returns a breaker in the state closed.
func New(cfg Config) *Breaker { return &Breaker{cfg: cfg, state: Closed} }

func (b *Breaker) off() bool { return b.cfg.Messages < 0 }

// Start lets workers take in until parent ends.
func (b *Breaker) Start(parent context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parent, b.sampled = parent, time.Now()
	b.admit()
}

// Stop ends the breaker's timers.
func (b *Breaker) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, timer := range []*time.Timer{b.timer, b.deadline} {
		if timer != nil {
			timer.Stop()
		}
	}
}

func (b *Breaker) admit() {
	in := &Intake{ctx: b.parent, cancel: func() {}}
	if !b.off() {
		in.ctx, in.cancel = context.WithCancel(b.parent)
	}
	b.intake.Store(in)
}

// Intake returns what workers take in through now.
func (b *Breaker) Intake() *Intake { return b.intake.Load() }

// Paused reports whether the group takes nothing in but probes.
func (b *Breaker) Paused() bool {
	in := b.intake.Load()
	return in != nil && in.Paused()
}

// Failed records a failed try, the first of its delivery or a later one, and returns what follows it.
func (b *Breaker) Failed(m *Message, f Failure) Verdict {
	first := !m.failed
	m.failed = true
	if b.off() || f.Bug {
		return Verdict{}
	}
	now := time.Now()
	age := now.Sub(f.Since)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sample(now)
	if b.state == Closed {
		if b.spent(age) {
			return Verdict{}
		}
		pause := b.count(m, f.Since, first, now) && (f.Last || now.Sub(b.since) >= b.cfg.Patience)
		if !pause && !b.succeededSince(f.Since) {
			var wait time.Duration
			if pause, wait = b.doubt(f, age); wait > 0 {
				return Verdict{Spared: true, After: wait}
			}
		}
		if !pause {
			return Verdict{}
		}
		b.open(now, f.Err)
	}
	if b.probed == m && b.state == HalfOpen {
		b.reopen(f.Err, !f.before(m))
	}
	if b.spent(age) {
		return Verdict{}
	}
	if !f.before(m) {
		b.spared++
	}
	return Verdict{Spared: true, After: b.later(), Paused: true}
}

// sample compares the group's count of successes with that of the last failure.
func (b *Breaker) sample(now time.Time) {
	if handled := b.cfg.Succeeded(); handled != b.handled {
		b.success, b.handled = b.sampled, handled
	}
	b.sampled = now
}

// succeededSince reports whether a message has succeeded in this process since t, a time at which a message
// failed, or one before the process began.
func (b *Breaker) succeededSince(t time.Time) bool {
	return !b.success.IsZero() && !b.success.Before(t)
}

// spent reports whether a message has been failing for longer than it is spared.
func (b *Breaker) spent(age time.Duration) bool { return b.cfg.MaxPause >= 0 && age >= b.cfg.MaxPause }

// doubt decides on a message that may be bad or may fail because of an outage: no other has succeeded since it first
// failed. If the policy would now poison it or delay it for long, the group pauses. A message that has failed for a short
// time only is given back first, and decided on when it is older.
func (b *Breaker) doubt(f Failure, age time.Duration) (pause bool, wait time.Duration) {
	var old time.Duration
	switch {
	case f.Last && b.cfg.Parks:
		old = max(b.cfg.Patience, 0)
	case f.Last && age >= outageAge:
		return true, 0
	case !f.Last && !f.Asked && f.Next > outageAge:
		old = outageAge
	default:
		return false, 0
	}
	if age >= old {
		return true, 0
	}
	return false, old - age
}

// count enters a failure and reports whether nearly everything fails. A message that first failed before
// others succeeded has failed for itself and does not count.
func (b *Breaker) count(m *Message, failing time.Time, first bool, now time.Time) bool {
	share := float64(b.fails) / float64(uint64(b.fails)+b.handled-b.before) //nolint:gosec // a count
	if b.fails > 0 && (share < b.cfg.Share || now.Sub(b.last) > max(b.cfg.Patience, outageAge)) {
		b.fails = 0 // others succeed, or what failed is settled by now; see doubt for messages that fail seldom
	}
	b.last = now
	alone := !b.succeededSince(failing)
	if b.fails == 0 {
		if !alone {
			return false
		}
		b.run++
		b.since, b.before, b.failing = now, b.handled, make(map[string]struct{})
	}
	if !alone && m.run != b.run && failing.Before(b.since) {
		return false
	}
	if m.run = b.run; first {
		b.fails++
	}
	if len(b.failing) < b.cfg.Messages {
		b.failing[m.ID] = struct{}{}
	}
	return len(b.failing) >= b.threshold()
}

// threshold returns how many different messages must fail.
func (b *Breaker) threshold() int {
	if b.cfg.Strict && b.cfg.Parks {
		return 1 // no other can be handed out
	}
	return b.cfg.Messages
}

// open pauses the group.
func (b *Breaker) open(now time.Time, err error) {
	b.paused, b.cause, b.interval, b.successes, b.spared, b.repeats = now, err, b.cfg.Probe, 0, 0, 0
	old := b.intake.Load()
	b.intake.Store(&Intake{turn: make(chan struct{}, 1), over: make(chan struct{})})
	old.cancel()
	b.await()
}

// reopen waits longer for the next probe than for this one, which has failed, for the first time or again. If others
// have succeeded, one that had failed before says nothing.
func (b *Breaker) reopen(err error, first bool) {
	if b.successes > 0 && !first {
		return
	}
	b.repeats++
	if first {
		b.repeats = 0
	}
	b.cause, b.successes = err, 0
	b.interval = min(2*b.interval, b.cfg.MaxProbe)
	b.await()
}

// later returns when a message is redelivered that failed while the group is paused. In an unordered group it must
// not stand before what has not failed when the next probe is taken; the more have failed, and the more often
// the same fail, the longer it waits, for up to ten times MaxProbe.
func (b *Breaker) later() time.Duration {
	after := b.interval
	if !b.cfg.Ordered {
		rounds := max(b.spared, 1<<min(b.repeats, 8), 1)
		after = min(time.Duration(rounds)*b.interval, b.longest())
	}
	return after/2 + rand.N(after/2+1)
}

// longest returns the longest wait of a message that failed while the group is paused.
func (b *Breaker) longest() time.Duration { return 10 * b.cfg.MaxProbe }

// await sets the time of the next probe.
func (b *Breaker) await() {
	b.timer = time.AfterFunc(b.interval, b.intake.Load().pass)
	b.change(Change{To: Open, Err: b.cause, Wait: b.interval})
}

// BeginProbe is called by the worker that has got the turn to probe.
func (b *Breaker) BeginProbe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == Open {
		b.change(Change{To: HalfOpen, Err: b.cause, Wait: b.interval})
	}
}

// ProbeContext returns how long a probe's message is waited for. Without a success so far it is for as long as a
// pause spares messages: what failed is redelivered, perhaps to another process. After a success, silence is no
// reason to stay paused.
func (b *Breaker) ProbeContext(parent context.Context) (context.Context, context.CancelFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.successes > 0:
		return context.WithTimeout(parent, 2*b.cfg.MaxProbe)
	case b.cfg.MaxPause < 0:
		return context.WithCancel(parent)
	default:
		left := b.cfg.MaxPause - time.Since(b.paused)
		return context.WithTimeout(parent, max(left, b.longest()+b.cfg.MaxProbe))
	}
}

// Probing is called when the worker that has the turn of a pause has got its message.
func (b *Breaker) Probing(in *Intake, m *Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.intake.Load() != in { // other probes have ended the pause meanwhile
		return
	}
	m.probe, b.probed = true, m
	err := fmt.Errorf("message %s has not ended after %s", m.ID, b.cfg.ProbeTimeout)
	b.deadline = time.AfterFunc(b.cfg.ProbeTimeout, func() { b.overran(m, err) })
}

// overran takes the turn from a probe that does not end. It belongs to its worker and is not looked into.
func (b *Breaker) overran(m *Message, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.probed != m {
		return
	}
	b.probed = nil
	if b.state == HalfOpen { // it may still succeed, and has not failed
		b.cause = err
		b.interval = min(2*b.interval, b.cfg.MaxProbe)
		b.await()
	}
}

// ProbeEnded is called when a probe has ended, however it did. Whoever has the turn passes it on, unless
// the next probe has to wait.
func (b *Breaker) ProbeEnded(m *Message, succeeded bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	turn := b.probed == m
	if turn {
		b.probed = nil
		b.deadline.Stop()
	}
	if b.state == Closed {
		return
	}
	if succeeded {
		b.successes++
	}
	switch {
	case b.successes >= b.cfg.Successes:
		b.close()
	case turn && b.state == HalfOpen:
		b.intake.Load().pass()
	}
}

// EndPause ends a pause for lack of messages.
func (b *Breaker) EndPause(in *Intake) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != Closed && b.intake.Load() == in {
		b.close()
	}
}

// close ends the pause.
func (b *Breaker) close() {
	took := time.Since(b.paused)
	b.fails, b.failing = 0, nil
	b.timer.Stop()
	old := b.intake.Load()
	b.admit()
	close(old.over)
	b.change(Change{To: Closed, After: took})
}

func (b *Breaker) change(c Change) {
	c.From, b.state = b.state, c.To
	if c.To != Closed {
		c.Since = b.paused
	}
	b.cfg.Changed(c)
}
