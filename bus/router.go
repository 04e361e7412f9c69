package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/breaker"
)

const (
	// interruptGrace is how long handlers get to notice that their context was cancelled.
	interruptGrace = time.Second
	// drainNotice is how long a drain goes on before it says whom it waits for.
	drainNotice = 3 * time.Second
	// backlogPoll is how often a draining bus looks whether a transport that would lose its
	// backlog has worked it off.
	backlogPoll = 2 * time.Millisecond
)

// Run subscribes every handler's group and handles messages until ctx is done; it blocks. Then it
// drains: it stops taking in, lets handlers finish with a live context, cancels what is left after
// the drain timeout and gives it back. Where the transport is not durable, what already waits is
// handled first. Run returns nil after a drain that left nothing behind; an error names the
// handlers that would not end, or says why a group could not be subscribed. A bus runs once.
func (b *Bus) Run(ctx context.Context) error {
	b.mu.Lock()
	switch {
	case b.isClosed():
		b.mu.Unlock()
		return fmt.Errorf("bus: run: %w", ErrClosed)
	case b.runCalled:
		b.mu.Unlock()
		return errors.New("bus: run: a bus runs once, and not after it was drained")
	}
	b.runCalled = true
	b.mu.Unlock()
	defer close(b.stopped)
	b.runErr = b.run(ctx)
	return b.runErr
}

func (b *Bus) run(ctx context.Context) error {
	if err := b.subscribeUntilStopped(ctx); err != nil {
		return err
	}
	r := newRun(ctx, b)
	r.start()
	defer b.startWatchingParked(ctx)()
	b.sayRunning()
	close(b.running)

	select {
	case <-ctx.Done():
	case <-b.stop:
	case <-r.failed:
	}
	err := r.drain()
	select {
	case <-r.failed:
		return errors.Join(r.err, err)
	default:
		return err
	}
}

// sayRunning names the transport, which a misspelt variable would leave at its default, and the groups, by
// which operators find what failed.
func (b *Bus) sayRunning() {
	transport := "unknown"
	if h, ok := b.TransportHealth(); ok {
		transport = h.Transport
	}
	names := make([]string, len(b.groups)) // no group comes after Run
	for i, g := range b.groups {
		names[i] = g.name
	}
	b.cfg.Logger.Info("leat: running", "transport", transport, "groups", strings.Join(names, ", "))
}

// subscribeUntilStopped subscribes every group, and gives up when the bus is stopped meanwhile.
func (b *Bus) subscribeUntilStopped(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	subscribed := make(chan error, 1)
	go func() { subscribed <- b.subscribe(ctx) }()
	select {
	case err := <-subscribed:
		return err
	case <-b.stop:
		cancel()
		if err := <-subscribed; err != nil {
			return fmt.Errorf("bus: run: stopped at start: %w", ErrClosed)
		}
		return nil
	}
}

func (b *Bus) isStopping() bool {
	select {
	case <-b.stopping:
		return true
	default:
		return false
	}
}

func (b *Bus) interrupted() bool { return b.cut.Load() }

// run is one Run: its workers, and the contexts by which they stop.
type run struct {
	bus       *Bus
	wg        sync.WaitGroup
	intake    context.Context // ends when workers must take no more
	closeIn   context.CancelFunc
	handling  context.Context // every handler's; ends when they are interrupted
	interrupt context.CancelCauseFunc

	relaying  sync.WaitGroup // the outbox's relay
	relayCtx  context.Context
	stopRelay context.CancelFunc

	failOnce sync.Once
	failed   chan struct{}
	err      error
}

func newRun(ctx context.Context, b *Bus) *run {
	r := &run{bus: b, failed: make(chan struct{})}
	r.intake, r.closeIn = context.WithCancel(context.Background())
	r.handling, r.interrupt = context.WithCancelCause(context.WithoutCancel(ctx))
	r.relayCtx, r.stopRelay = context.WithCancel(context.WithoutCancel(ctx))
	return r
}

func (r *run) start() {
	r.bus.mu.Lock()
	defer r.bus.mu.Unlock()
	for _, g := range r.bus.groups {
		g.breaker.Start(r.intake)
		handling := pprof.WithLabels(r.handling, pprof.Labels(profilerLabel, g.name))
		for range g.handler.Concurrency {
			g.workers = append(g.workers, &worker{run: r, group: g, handling: handling})
		}
		for _, w := range g.workers {
			r.wg.Go(w.work)
		}
	}
	if r.bus.cfg.Outbox != nil {
		r.relaying.Go(r.relay)
	}
}

func (r *run) relay() {
	if err := r.bus.relay(r.relayCtx); err != nil {
		r.fail(r.bus.cfg.Outbox.Group(), err)
	}
}

// fail stops the bus for an error that the transport can't recover from.
func (r *run) fail(group string, err error) {
	r.failOnce.Do(func() {
		r.err = fmt.Errorf("bus: group %q: %w", group, err)
		close(r.failed)
	})
}

// drain ends a run, in stages.
func (r *run) drain() error {
	defer r.interrupt(nil)
	defer r.stopBreakers()
	close(r.bus.stopping)
	r.stopRelay() // before a transport that is not durable is worked off
	r.relaying.Wait()

	limit, cancel := r.bus.drainLimit()
	defer cancel()
	if !r.bus.durable {
		r.workOffBacklog(limit)
	}
	r.closeIn()
	if r.wait(limit) {
		return nil
	}
	r.bus.cut.Store(true)
	r.interrupt(ErrInterrupted)
	grace, cancel := context.WithTimeout(context.Background(), interruptGrace)
	defer cancel()
	if r.wait(grace) {
		return nil
	}
	return r.abandon()
}

func (r *run) stopBreakers() {
	for _, g := range r.bus.groups {
		g.breaker.Stop()
	}
}

// drainLimit ends when handlers have had their time: the drain timeout, or what the callers of Drain and Close allow.
func (b *Bus) drainLimit() (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.drainCtx, b.cfg.DrainTimeout)
}

// workOffBacklog lets the workers handle what waits in a transport that would lose it. Messages that
// wait for a later time are not waited for, nor is a group that is paused.
func (r *run) workOffBacklog(limit context.Context) {
	for r.bus.backlog(func(g *group, now, _ int) int {
		if g.breaker.Paused() {
			return 0
		}
		return now
	}) > 0 {
		select {
		case <-limit.Done():
			return
		case <-r.failed: // the transport hands nothing out any more
			return
		case <-time.After(backlogPoll):
		}
	}
}

// backlog adds up what waits in transports that would lose it: for now, and for a later time.
func (b *Bus) backlog(count func(g *group, now, later int) int) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, g := range b.groups {
		if f, ok := g.receiver.(driver.BacklogCounter); ok {
			now, later := f.Backlog()
			n += count(g, now, later)
		}
	}
	return n
}

// wait reports whether every worker ended before the limit.
func (r *run) wait(limit context.Context) bool {
	done := make(chan struct{})
	go func() {
		r.wg.Wait()
		close(done)
	}()
	notice := time.NewTimer(drainNotice)
	defer notice.Stop()
	for {
		select {
		case <-done:
			return true
		case <-limit.Done():
			return false
		case <-notice.C:
			r.bus.cfg.Logger.Warn("leat: draining; still waiting for handlers", "handlers", strings.Join(r.inFlight(), ", "))
		}
	}
}

// inFlight names the handlers that are at work, with their messages.
func (r *run) inFlight() (names []string) {
	for _, g := range r.bus.groups {
		for _, w := range g.workers {
			if d := w.current.Load(); d != nil {
				names = append(names, fmt.Sprintf("%s (message %s)", g.handler.Name, d.breaker.ID))
			}
		}
	}
	return names
}

// abandon gives back the deliveries of handlers that ignore their context, and names them.
func (r *run) abandon() error {
	stuck := r.inFlight()
	for _, g := range r.bus.groups {
		for _, w := range g.workers {
			if d := w.current.Load(); d != nil {
				g.giveBack(d)
			}
		}
	}
	if len(stuck) == 0 {
		return nil
	}
	fate := "their messages come again"
	if !r.bus.durable {
		fate = "their messages are lost with the transport, which is not durable"
	}
	return fmt.Errorf("bus: drain: left behind, because they ignore their cancelled context: %s; %s", strings.Join(stuck, ", "), fate)
}

// worker handles one delivery of its group at a time.
type worker struct {
	run      *run
	group    *group
	handling context.Context // the run's, with the group's profiler label
	current  atomic.Pointer[Delivery]
}

// profilerLabel names the group in the samples of profiles. Workers wear it all their life, which costs messages nothing.
const profilerLabel = "leat_group"

func (w *worker) work() {
	pprof.SetGoroutineLabels(w.handling)
	done := false
	defer func() {
		if !done { // the handler ended its goroutine with runtime.Goexit; the group keeps its workers
			w.exited()
		}
	}()
	for w.next() {
	}
	done = true
}

func (w *worker) next() bool {
	in := w.group.breaker.Intake()
	if in.Paused() {
		return w.pause(in)
	}
	d, err := w.group.receiver.Next(in.Context())
	if err != nil {
		return w.refused(in.Context(), err)
	}
	return w.take(d, nil)
}

// refused reports whether the worker continues after the receiver returned no message.
func (w *worker) refused(ctx context.Context, err error) bool {
	switch {
	case w.run.intake.Err() != nil:
		return false
	case ctx.Err() != nil: // the group is paused, or there is nothing to probe with
		return true
	default: // ErrClosed, too: somebody closed the transport under the bus
		w.run.fail(w.group.name, err)
		return false
	}
}

// pause waits for the end of the group's pause, or for the turn to probe, which is one message.
func (w *worker) pause(in *breaker.Intake) bool {
	select {
	case <-in.Over():
		return true
	case <-w.run.intake.Done():
		return false
	case <-in.Turn():
	}
	b := w.group.breaker
	b.BeginProbe()
	ctx, cancel := b.ProbeContext(w.run.intake)
	defer cancel()
	d, err := w.group.receiver.Next(ctx)
	if err != nil {
		if !w.refused(ctx, err) {
			return false
		}
		b.EndPause(in)
		return true
	}
	return w.take(d, func(d *Delivery) { b.Probing(in, &d.breaker) })
}

// take handles a delivery. It calls ready, if that is not nil, before it begins.
func (w *worker) take(handed *driver.Delivery, ready func(*Delivery)) bool {
	d := &Delivery{Delivery: *handed, handed: handed}
	if w.run.bus.interrupted() { // it came too late, and its context is over
		w.group.giveBack(d)
		return false
	}
	d.breaker.Started = time.Now()
	// A transport may have these from headers that anybody can write.
	d.Attempt, d.Failures = max(d.Attempt, 1), max(d.Failures, driver.FailuresUnknown)
	if d.FailedSince.After(d.breaker.Started) {
		d.FailedSince = d.breaker.Started
	}
	id := driver.MessageID(d.Message)
	d.breaker.ID = id[:min(len(id), driver.MaxClassBytes)] // it goes into logs
	if ready != nil {
		ready(d)
	}
	w.current.Store(d)
	w.group.handle(w.handling, d)
	w.current.Store(nil)
	return true
}

func (w *worker) exited() {
	if d := w.current.Swap(nil); d != nil {
		w.group.finish(d, ErrGoexit)
	}
	w.run.wg.Go(w.work)
}

// group is a handler with its receiver.
type group struct {
	bus      *Bus
	name     string
	handler  Handler
	fn       message.HandlerFunc
	receiver driver.Receiver
	workers  []*worker   // while it runs
	stacked  bool        // it has a stack
	others   loggedNames // types that it does not take and were logged
	health   health
	breaker  *breaker.Breaker

	_      apart
	counts counts
}

// build binds the handler's function and wraps it in its stack.
func (g *group) build() (err error) {
	fn := g.handler.Bind(g.bus.encoder)
	if fn == nil {
		return errors.New("its Bind returns no function")
	}
	g.fn = g.publishProduced(fn)
	stack := g.bus.cfg.Stack
	if g.handler.Stack != nil {
		stack = g.handler.Stack
	}
	if g.stacked = stack != nil; g.stacked {
		g.fn, err = stack.Wrap(g.handler, g.fn)
	}
	if err == nil && g.fn == nil {
		return errors.New("its stack returns no function")
	}
	return err
}

// publishProduced publishes what the function returns before anything further out can take the
// message for done: produced events are part of the effect.
func (g *group) publishProduced(fn message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if d := driver.DeliveryFrom(msg.Context()); d != nil && d.Unreadable != nil { // there is no step poison
			return nil, Permanent(d.Unreadable)
		}
		produced, err := fn(msg)
		if err != nil || len(produced) == 0 {
			return nil, err
		}
		return nil, g.bus.PublishMessages(msg.Context(), produced...)
	}
}

func (g *group) subscription() driver.Subscription {
	return driver.Subscription{
		Group:       g.name,
		Topics:      g.handler.Topics,
		Known:       g.handler.known(g.bus.transport.Capabilities()),
		Concurrency: g.handler.Concurrency,
		Order:       g.handler.Order,
		Park:        g.handler.parks(),
		Delays:      g.handler.redeliveryDelays(),
	}
}

// redeliveryDelays returns the delays after which the handler's messages are redelivered by its retry policies: sorted,
// each once. The stack may have another policy for handlers without one; that only costs its transport some hops.
func (h Handler) redeliveryDelays() (all []time.Duration) {
	policies := []RetryPolicy{{}}
	if h.Retry != nil {
		policies[0] = *h.Retry
	}
	for _, rule := range h.RetryOn {
		if rule.Policy != nil {
			policies = append(policies, *rule.Policy)
		}
	}
	for _, p := range policies {
		p = p.WithDefaults()
		for _, d := range p.Delays {
			if d > p.InProcess {
				all = append(all, d)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// handle takes one delivery through the stack and settles it.
func (g *group) handle(ctx context.Context, d *Delivery) {
	d.group = g
	d.ctx = deliveryContext{ctx, d}
	d.Message.SetContext(&d.ctx)
	g.counts.inFlight.Add(1)
	g.bus.ledger.inStack.Add(1)
	g.finish(d, g.call(d.Message))
}

// parked closes the account of a message that waits behind a poisoned one from now on: only an operator
// knows for how long. The transport takes the bus's name off it.
func (g *group) parked(msg *message.Message) {
	if msg.Metadata[driver.HeaderInstance] == g.bus.encoder.Instance {
		g.counts.parked.Add(1)
		g.bus.ledger.outstanding.Add(-1)
	}
}

// giveBack returns a delivery that is not to be handled, or whose handler is left behind.
func (g *group) giveBack(d *Delivery) {
	if err := d.settle(Interrupted, ErrInterrupted); err != nil {
		g.bus.cfg.Logger.Warn("leat: give back", "group", g.name, "message_id", d.breaker.ID, "error", err)
	}
}

// call calls the stack. It is the last resort against panics: the recover step, if the stack has it, sees them first.
func (g *group) call(msg *message.Message) (err error) {
	defer func() {
		if v := recover(); v != nil {
			g.counts.panics.Add(1)
			err = driver.NewPanicError(v)
		}
	}()
	produced, err := g.fn(msg)
	if err == nil && len(produced) > 0 { // by a step of the stack; the handler's own are published already
		err = g.bus.PublishMessages(msg.Context(), produced...)
	}
	return err
}

// finish settles a delivery and counts its outcome. Nothing that a message or a handler's error makes panic
// here ends the process.
func (g *group) finish(d *Delivery, err error) {
	outcome, settling := Redelivered, true
	defer g.bus.ledger.inStack.Add(-1)
	defer func() {
		if v := recover(); v != nil {
			g.rescue(d, driver.NewPanicError(v), settling)
		}
		g.counts.inFlight.Add(-1)
		g.counts.add(outcome)
		if d.breaker.Probe() {
			g.breaker.ProbeEnded(&d.breaker, outcome == Handled)
		}
	}()
	outcome = d.Outcome(err)
	if outcome == Redelivered {
		outcome, err = g.decide(d, err)
	}
	if settleErr := d.settle(outcome, err); settleErr != nil {
		g.bus.cfg.Logger.Warn("leat: settle; the message may come again",
			"group", g.name, "message_id", d.breaker.ID, "outcome", string(outcome), "error", settleErr)
	}
	settling = false
	again := outcome == Duplicate && d.Attempt-1 > d.Failures // it was handled before, and its ack was lost
	if outcome.Terminal() && d.Own() && !again {
		g.counts.settled.Add(1)
		g.bus.ledger.outstanding.Add(-1)
	}
	switch outcome {
	case Discarded:
		g.logOther(d, err)
	case Poisoned:
		g.warnParked(d)
	}
}

// logOther logs an event that the handler does not take, once for each type.
func (g *group) logOther(d *Delivery, err error) {
	other, ok := errors.AsType[*OtherEventError](err)
	if !ok {
		return
	}
	if name := driver.OneLine(other.Have.String(), driver.MaxClassBytes); g.others.first(name) { // a foreign producer chooses it
		g.bus.cfg.Logger.Warn("leat: discarded other events than the handler takes; logged once a type", "group", g.name,
			"type", name, "topic", driver.OneLine(d.Topic, driver.MaxClassBytes), "takes", typeNames(other.Takes))
	}
}

// decide turns an error that no step has decided on into a redelivery, or poisons the message. Such an error comes
// from a step outside of poison, from a handler that has ended its goroutine, or from a stack without the steps retry and
// poison.
func (g *group) decide(d *Delivery, err error) (Outcome, error) {
	var after time.Duration
	var end error
	r, decided := errors.AsType[*Redelivery](err)
	switch {
	case !decided && (d.givenUp || IsPermanent(err)):
		d.givenUp, end = true, err
	case decided && (d.breaker.Failed() || r.Uncounted || r.Err == nil):
		return Redelivered, err
	case decided: // by a step that is not leat's
		after = r.After
		end = d.fail(r.Err, nextTry{after: after, asked: true})
	case d.retries != nil:
		policy := d.retries(err)
		if policy == nil {
			d.givenUp, end = true, err
			break
		}
		after, _, end = d.Failed(err, *policy)
	case g.handler.Retry != nil:
		after, _, end = d.Failed(err, *g.handler.Retry)
	case g.stacked:
		after, _, end = d.Failed(err, RetryPolicy{})
	default:
		next := endless(d, err)
		after, end = next.after, d.fail(err, next)
	}
	if end == nil {
		return Redelivered, &Redelivery{After: after, Err: err}
	}
	if d.givenUp {
		if end = d.GiveUp(end, nil); end == nil {
			g.bus.cfg.Logger.Warn("leat: message poisoned outside of the poison step", "group", g.name, "message_id", d.breaker.ID, "error", err)
			return Poisoned, nil
		}
	}
	return Redelivered, end
}

// endless returns the next try on a bus without a stack, which tries for ever: after a growing delay of up to a minute,
// so that there is no hot loop.
func endless(d *Delivery, err error) nextTry {
	asked, _ := retryDelay(err)
	grown := min(time.Second<<min(max(d.Failures, 0), 6), time.Minute)
	return nextTry{after: max(asked, grown), asked: asked > grown}
}

// rescuedAfter is when a message is redelivered whose settling has panicked.
const rescuedAfter = 10 * time.Second

// rescue logs a panic at the end of a delivery. If the delivery is not settled yet, it is given back, so that its message
// is not lost with the process.
func (g *group) rescue(d *Delivery, panicked *PanicError, settling bool) {
	defer func() {
		if v := recover(); v != nil {
			g.bus.cfg.Logger.Error("leat: give back after a panic", "group", g.name, "message_id", d.breaker.ID, "error", driver.NewPanicError(v))
		}
	}()
	if !settling {
		g.bus.cfg.Logger.Error("leat: panic after a delivery was settled", "group", g.name, "message_id", d.breaker.ID, "error", panicked, "stack", panicked.Stack())
		return
	}
	g.bus.cfg.Logger.Error("leat: settle panicked; the message is given back", "group", g.name,
		"message_id", d.breaker.ID, "error", panicked, "stack", panicked.Stack())
	if err := d.Settler.GiveBack(rescuedAfter); err != nil {
		g.bus.cfg.Logger.Warn("leat: give back", "group", g.name, "message_id", d.breaker.ID, "error", err)
	}
}
