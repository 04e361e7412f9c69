// Package breaker implements the circuit breaker of a group. It distinguishes outages of dependencies from bad messages.
//
// To do so, it checks whether another message of the group has succeeded in this process since this one first failed. The
// rules are documented at bus.BreakerPolicy. The package has no bus types: it identifies messages by their ids and times.
//
//	closed ──── nearly everything fails, or a message would be poisoned or delayed
//	   ▲        for long and no other has succeeded since it first failed ───────────► open
//	   │                                                                                │ ▲
//	   │                                                      a worker takes the        │ │ the probe fails,
//	   │                                                      probe token               ▼ │ or takes too long
//	   └──────────── probes succeed, or there is nothing to probe with ◄────────── half-open
//
// There is one probe token. While the breaker is open, a timer offers it to the workers after the wait for the next probe.
// The worker that takes it handles one message as a probe. If the probe succeeds, or ends without a result, the token is
// offered again at once; if the probe fails or takes too long, the timer offers it after a longer wait.
//
// An operator may hold the group as well, in any of these states. While it is held, workers take no message, not even as a
// probe; what they have already taken still changes the state. After the release the group continues in the state it is in.
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
	Share     float64       // share of deliveries that must fail, 0 to 1
	Patience  time.Duration // how long the failures must last, unless a message is about to be poisoned
	Probe     time.Duration // wait before the first probe
	MaxProbe  time.Duration // longest wait before a probe
	MaxPause  time.Duration // how long a message may have been failing and still be spared; negative means forever
	Successes int           // how many probes must succeed

	Parks   bool // a poisoned message holds back the later ones of its key
	Strict  bool // one message of the group is in flight at a time
	Ordered bool // a redelivered message is delivered before later ones

	// ProbeTimeout is how long a probe may take before it counts as failed.
	ProbeTimeout time.Duration
	// Succeeded returns how many messages of the group have succeeded in this process.
	Succeeded func() uint64
	// Changed is called on each change of the state, and when the group is held or released. Calls do not overlap. It is called
	// with the Breaker's mutex locked, so it must not call the Breaker and must not block.
	Changed func(Change)
}

// State is the state of a Breaker.
type State string

// States of a Breaker.
const (
	Closed   State = "closed"    // messages flow
	Open     State = "open"      // the group is paused
	HalfOpen State = "half-open" // paused, and a probe is running
)

// Change describes a change of the state. From and To are the same if the group was held or released.
type Change struct {
	From, To State
	Held     bool          // by an operator, now
	Err      error         // the last failure; nil when it closes
	Wait     time.Duration // until the next probe, when it opens
	After    time.Duration // how long the group was paused, when it closes, or held, when it is released
	Since    time.Time     // when the pause began; zero when it closes
}

// Message is the state that a Breaker keeps with a delivery. It belongs to the delivery's goroutine.
type Message struct {
	ID      string
	Started time.Time // when its delivery began

	failed bool // has failed in this delivery
	probe  bool // is handled as a probe
	run    int  // number of the run of failures in which it was counted
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
	Bug   bool          // it is a bug of the handler, and no outage
}

// failedBefore reports whether the message had failed before this delivery.
func (f Failure) failedBefore(m *Message) bool { return f.Since.Before(m.Started) }

// Verdict says what follows a failed try. The zero Verdict means that the retry policy applies.
type Verdict struct {
	Spared bool          // the try does not count, and the message is redelivered
	After  time.Duration // delay of that redelivery
	Paused bool          // the reason is that the group is paused
}

// outageAge is how long a message must have been failing before rule 2 of bus.BreakerPolicy applies to it.
const outageAge = time.Minute

// A Breaker is the circuit breaker of one group. All methods may be called concurrently.
//
// It costs a worker one atomic load per delivery. A success costs nothing: the group counts its successes anyway, and the
// breaker compares that count whenever a message fails.
type Breaker struct {
	cfg    Config
	intake atomic.Pointer[Intake] // nil before Start

	// mu guards everything below. Exported methods and probeTimedOut lock it, and all others are called with it
	// locked. So is Changed, so that changes are reported in order.
	mu     sync.Mutex
	state  State
	parent context.Context // ends when workers must take no more messages; nil before Start
	held   time.Time       // when an operator stopped the group; zero if none has

	// Successes. Each failure takes a sample of the group's count.
	handled uint64    // count at the last sample
	sampled time.Time // time of the last sample
	success time.Time // a message has succeeded after this time; zero if none has

	// The current run of failures, while closed.
	since   time.Time           // its first failure
	last    time.Time           // its latest failure
	run     int                 // its number
	fails   int                 // failed deliveries; 0 means that there is no run
	before  uint64              // count of successes at its beginning
	failing map[string]struct{} // ids of failing messages, at most cfg.Messages

	// The current pause, while open or half-open.
	paused    time.Time     // its beginning
	cause     error         // the last failure
	interval  time.Duration // wait before the next probe
	successes int           // successful probes
	timer     *time.Timer   // offers the probe token after the interval
	probed    *Message      // the probe that has the token; nil while no message is probed
	deadline  *time.Timer   // times that probe out
	spared    int           // messages that failed for the first time in this pause
	repeats   int           // probes in a row that had failed before
}

// An Intake controls whether workers may take messages. It is replaced when the group pauses or resumes, and when it is held or
// released.
type Intake struct {
	ctx     context.Context // ends when the Intake is replaced
	cancel  context.CancelFunc
	probe   chan struct{} // holds the probe token while it is offered; nil while closed or held
	resumed chan struct{} // closed when the Intake is replaced; nil if workers may take messages
}

// Paused reports whether the group is paused or held.
func (in *Intake) Paused() bool { return in.resumed != nil }

// Context returns a context that ends when the group pauses, or is held.
func (in *Intake) Context() context.Context { return in.ctx }

// Resumed returns a channel that is closed when workers should look at the next Intake: the pause has ended, or the group was
// held or released.
func (in *Intake) Resumed() <-chan struct{} { return in.resumed }

// Probe returns the channel from which a worker receives the probe token.
func (in *Intake) Probe() <-chan struct{} { return in.probe }

// offerProbe offers the probe token to the workers.
func (in *Intake) offerProbe() {
	select {
	case in.probe <- struct{}{}:
	default: // it is offered already
	}
}

// New returns a closed breaker.
func New(cfg Config) *Breaker { return &Breaker{cfg: cfg, state: Closed} }

func (b *Breaker) disabled() bool { return b.cfg.Messages < 0 }

// Start lets workers take messages until parent ends. It must be called before Intake and Failed.
func (b *Breaker) Start(parent context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parent, b.sampled = parent, time.Now()
	b.replaceIntake(b.state)
}

// Stop stops the breaker's timers.
func (b *Breaker) Stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, timer := range []*time.Timer{b.timer, b.deadline} {
		if timer != nil {
			timer.Stop()
		}
	}
}

// replaceIntake replaces the Intake by one for a state.
func (b *Breaker) replaceIntake(state State) {
	in := &Intake{}
	in.ctx, in.cancel = context.WithCancel(b.parent)
	if state != Closed || !b.held.IsZero() {
		in.resumed = make(chan struct{})
	}
	if state != Closed && b.held.IsZero() {
		in.probe = make(chan struct{}, 1)
	}
	old := b.intake.Swap(in)
	if old == nil {
		return
	}
	old.cancel()
	if old.resumed != nil {
		close(old.resumed)
	}
}

// Hold stops the intake until Release. Workers keep what they have taken.
func (b *Breaker) Hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.held.IsZero() {
		return
	}
	b.held = time.Now()
	if b.parent != nil {
		b.replaceIntake(b.state)
	}
	b.change(Change{To: b.state})
}

// Release ends Hold. If the group is paused as well, a probe follows after the usual wait.
func (b *Breaker) Release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held.IsZero() {
		return
	}
	took := time.Since(b.held)
	b.held = time.Time{}
	if b.parent != nil {
		b.replaceIntake(b.state)
	}
	if b.state != Closed && b.probed == nil && b.parent.Err() == nil { // the end of a probe that runs decides on the next one
		b.startTimer()
	}
	c := Change{To: b.state, After: took}
	if b.state != Closed {
		c.Err, c.Wait = b.cause, b.interval
	}
	b.change(c)
}

// Intake returns the current Intake.
func (b *Breaker) Intake() *Intake { return b.intake.Load() }

// Paused reports whether the group is paused.
func (b *Breaker) Paused() bool {
	in := b.intake.Load()
	return in != nil && in.Paused()
}

// Failed records a failed try and returns what follows it. A delivery may have several tries.
func (b *Breaker) Failed(m *Message, f Failure) Verdict {
	first := !m.failed
	m.failed = true
	if b.disabled() || f.Bug {
		return Verdict{}
	}
	now := time.Now()
	age := now.Sub(f.Since)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sample(now)
	if b.state == Closed {
		if b.pastMaxPause(age) {
			return Verdict{}
		}
		pause := b.countFailure(m, f.Since, first, now) && (f.Last || now.Sub(b.since) >= b.cfg.Patience)
		if !pause && !b.succeededSince(f.Since) {
			var wait time.Duration
			if pause, wait = b.suspectOutage(f, age); wait > 0 {
				return Verdict{Spared: true, After: wait}
			}
		}
		if !pause {
			return Verdict{}
		}
		b.open(now, f.Err)
	}
	if b.probed == m && b.state == HalfOpen {
		b.reopen(f.Err, !f.failedBefore(m))
	}
	if b.pastMaxPause(age) {
		return Verdict{}
	}
	if !f.failedBefore(m) {
		b.spared++
	}
	return Verdict{Spared: true, After: b.redeliveryDelay(), Paused: true}
}

// sample compares the group's count of successes with that of the last failure.
func (b *Breaker) sample(now time.Time) {
	if handled := b.cfg.Succeeded(); handled != b.handled {
		b.success, b.handled = b.sampled, handled
	}
	b.sampled = now
}

// succeededSince reports whether a message has succeeded in this process since t. t is the time of a failure, in this process
// or before it started.
func (b *Breaker) succeededSince(t time.Time) bool {
	return !b.success.IsZero() && !b.success.Before(t)
}

// pastMaxPause reports whether a message has been failing for too long to be spared.
func (b *Breaker) pastMaxPause(age time.Duration) bool {
	return b.cfg.MaxPause >= 0 && age >= b.cfg.MaxPause
}

// suspectOutage implements rule 2 of bus.BreakerPolicy, for a message since whose first failure no other has succeeded: the
// message may be bad, or a dependency may be down. If the policy would now poison it or delay it for long, the group pauses.
// If the message has not been failing for long enough, suspectOutage returns how long to wait before it is tried again.
func (b *Breaker) suspectOutage(f Failure, age time.Duration) (pause bool, wait time.Duration) {
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

// countFailure implements rule 1 of bus.BreakerPolicy: it adds a failure to the current run and reports whether enough
// messages fail. A message does not count if others have succeeded since its first failure: then it is bad itself.
func (b *Breaker) countFailure(m *Message, failing time.Time, first bool, now time.Time) bool {
	share := float64(b.fails) / float64(uint64(b.fails)+b.handled-b.before) //nolint:gosec // a count
	if b.fails > 0 && (share < b.cfg.Share || now.Sub(b.last) > max(b.cfg.Patience, outageAge)) {
		b.fails = 0 // others succeed, or the last failure is too long ago; rule 2 is for messages that fail rarely
	}
	b.last = now
	noneSucceeded := !b.succeededSince(failing)
	if b.fails == 0 {
		if !noneSucceeded {
			return false
		}
		b.run++
		b.since, b.before, b.failing = now, b.handled, make(map[string]struct{})
	}
	if !noneSucceeded && m.run != b.run && failing.Before(b.since) {
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
		return 1 // no other message can be delivered
	}
	return b.cfg.Messages
}

// open pauses the group.
func (b *Breaker) open(now time.Time, err error) {
	b.paused, b.cause, b.interval, b.successes, b.spared, b.repeats = now, err, b.cfg.Probe, 0, 0, 0
	b.replaceIntake(Open)
	b.scheduleProbe()
}

// reopen schedules the next probe after one has failed, with a longer wait. first says that its message had not failed
// before. A probe that had failed before is ignored if others have succeeded in this pause: that message may be bad.
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
	b.scheduleProbe()
}

// redeliveryDelay returns the delay of a message that has failed while the group is paused. In an unordered group, messages
// that have not failed should be probed first. So the delay grows with the number of messages that have failed, and with the
// number of failed probes of the same messages, up to maxRedeliveryDelay.
func (b *Breaker) redeliveryDelay() time.Duration {
	after := b.interval
	if !b.cfg.Ordered {
		rounds := max(b.spared, 1<<min(b.repeats, 8), 1)
		after = min(time.Duration(rounds)*b.interval, b.maxRedeliveryDelay())
	}
	return after/2 + rand.N(after/2+1)
}

// maxRedeliveryDelay returns the longest delay of a message that has failed while the group is paused.
func (b *Breaker) maxRedeliveryDelay() time.Duration { return 10 * b.cfg.MaxProbe }

// scheduleProbe starts the timer of the next probe.
func (b *Breaker) scheduleProbe() {
	b.startTimer()
	b.change(Change{To: Open, Err: b.cause, Wait: b.interval})
}

// startTimer lets the probe token be offered after the interval, and not before.
func (b *Breaker) startTimer() {
	if b.timer != nil {
		b.timer.Stop()
	}
	b.timer = time.AfterFunc(b.interval, b.intake.Load().offerProbe)
}

// BeginProbe changes the state to half-open. The worker that has received the probe token calls it.
func (b *Breaker) BeginProbe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == Open {
		b.change(Change{To: HalfOpen, Err: b.cause, Wait: b.interval})
	}
}

// ProbeContext returns the context in which a worker waits for a message to probe with; EndPause ends the pause if none
// comes. parent is the Intake's context. As long as no probe has succeeded, it lasts as long as a pause spares messages: the
// failed ones are redelivered, but perhaps to another process. After a successful probe it is short.
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
		return context.WithTimeout(parent, max(left, b.maxRedeliveryDelay()+b.cfg.MaxProbe))
	}
}

// Probing records that m is the probe of the pause that in belongs to. The worker with the probe token calls it when it has
// received its message.
func (b *Breaker) Probing(in *Intake, m *Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.intake.Load() != in { // earlier probes, which timed out, have ended the pause meanwhile
		return
	}
	m.probe, b.probed = true, m
	err := fmt.Errorf("message %s has not ended after %s", m.ID, b.cfg.ProbeTimeout)
	b.deadline = time.AfterFunc(b.cfg.ProbeTimeout, func() { b.probeTimedOut(m, err) })
}

// probeTimedOut schedules another probe if m is still being handled. It does not access the fields of m, which belongs to its
// worker.
func (b *Breaker) probeTimedOut(m *Message, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.probed != m {
		return
	}
	b.probed = nil
	if b.state == HalfOpen { // it may still succeed, and has not failed
		b.cause = err
		b.interval = min(2*b.interval, b.cfg.MaxProbe)
		b.scheduleProbe()
	}
}

// ProbeEnded records the end of a probe, with any outcome. Enough successes end the pause. Otherwise the token is offered
// again at once, unless the probe has failed or timed out, which has scheduled the next one.
func (b *Breaker) ProbeEnded(m *Message, succeeded bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	current := b.probed == m
	if current {
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
	case current && b.state == HalfOpen:
		b.intake.Load().offerProbe()
	}
}

// EndPause ends the pause that in belongs to, because there is no message to probe with.
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
	b.replaceIntake(Closed)
	b.change(Change{To: Closed, After: took})
}

func (b *Breaker) change(c Change) {
	c.From, b.state, c.Held = b.state, c.To, !b.held.IsZero()
	if c.To != Closed {
		c.Since = b.paused
	}
	b.cfg.Changed(c)
}
