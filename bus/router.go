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
	// drainNotice is how long a drain lasts before the bus logs which handlers it waits for.
	drainNotice = 3 * time.Second
	// backlogPoll is how often a draining bus checks the backlog of a transport that is not durable.
	backlogPoll = 2 * time.Millisecond
)

// Run subscribes every handler's group and handles messages. It blocks until ctx is done or [Bus.Drain] or [Bus.Close] is
// called, and then drains the bus:
//
//  1. If the transport is not durable, the messages that wait in it are handled first.
//  2. The bus takes no more messages. Running handlers may finish with a live context.
//  3. After the drain timeout, the contexts of the remaining handlers are cancelled with [ErrInterrupted], and their
//     messages are given back.
//
// Run returns nil if every handler returned. Otherwise the error names the handlers that did not return, or says why a
// group could not be subscribed. It returns [ErrClosed] after Close. A bus runs once.
func (b *Bus) Run(ctx context.Context) error {
	switch {
	case b.life.isClosed():
		return fmt.Errorf("bus: run: %w", ErrClosed)
	case !b.groups.seal():
		return errors.New("bus: run: a bus runs once, and not after it was drained")
	}
	defer close(b.life.stopped)
	b.life.runErr = b.run(ctx)
	return b.life.runErr
}

func (b *Bus) run(ctx context.Context) error {
	if err := b.groups.subscribeUntil(ctx, b.life.stop); err != nil {
		return err
	}
	r := newRun(ctx, b)
	r.start()
	defer b.groups.watchParked(ctx)()
	b.logStart()
	close(b.life.running)

	select {
	case <-ctx.Done():
	case <-b.life.stop:
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

// logStart logs the transport, since a misspelt variable leaves it at its default, and the groups, since operators need
// their names to find failed messages.
func (b *Bus) logStart() {
	transport := "unknown"
	if h, ok := b.TransportHealth(); ok {
		transport = h.Transport
	}
	var names []string
	for _, g := range b.groups.all() {
		names = append(names, g.name)
	}
	b.cfg.Logger.Info("leat: running", "transport", transport, "groups", strings.Join(names, ", "))
}

// run holds the workers of one call of Run, and the contexts that stop them.
type run struct {
	bus        *Bus
	wg         sync.WaitGroup
	intake     context.Context // ends when workers must take no more messages
	stopIntake context.CancelFunc
	handling   context.Context // every handler's; ends when they are interrupted
	interrupt  context.CancelCauseFunc

	relaying  sync.WaitGroup // the outbox's relay
	relayCtx  context.Context
	stopRelay context.CancelFunc

	failOnce sync.Once
	failed   chan struct{}
	err      error
}

func newRun(ctx context.Context, b *Bus) *run {
	r := &run{bus: b, failed: make(chan struct{})}
	r.intake, r.stopIntake = context.WithCancel(context.Background())
	r.handling, r.interrupt = context.WithCancelCause(context.WithoutCancel(ctx))
	r.relayCtx, r.stopRelay = context.WithCancel(context.WithoutCancel(ctx))
	return r
}

func (r *run) start() {
	r.bus.groups.each(func(g *group) {
		g.breaker.Start(r.intake)
		handling := pprof.WithLabels(r.handling, pprof.Labels(profilerLabel, g.name))
		for range g.handler.Concurrency {
			g.workers = append(g.workers, &worker{run: r, group: g, handling: handling})
		}
		for _, w := range g.workers {
			r.wg.Go(w.work)
		}
	})
	if r.bus.cfg.Outbox != nil {
		r.relaying.Go(r.relay)
	}
}

func (r *run) relay() {
	if err := r.bus.sender.relay(r.relayCtx); err != nil {
		r.fail(r.bus.cfg.Outbox.Group(), err)
	}
}

// fail stops the bus because of an error from which the transport can't recover.
func (r *run) fail(group string, err error) {
	r.failOnce.Do(func() {
		r.err = fmt.Errorf("bus: group %q: %w", group, err)
		close(r.failed)
	})
}

// drain ends a run in the stages that Run documents.
func (r *run) drain() error {
	defer r.interrupt(nil)
	defer r.stopBreakers()
	close(r.bus.life.stopping)
	r.stopRelay() // first, so that it adds nothing to the backlog of a transport that is not durable
	r.relaying.Wait()

	limit, cancel := r.bus.life.drainLimit(r.bus.cfg.DrainTimeout)
	defer cancel()
	if !r.bus.durable {
		r.workOffBacklog(limit)
	}
	r.stopIntake()
	if r.wait(limit) {
		return nil
	}
	r.bus.life.drainTimedOut.Store(true)
	r.interrupt(ErrInterrupted)
	grace, cancel := context.WithTimeout(context.Background(), interruptGrace)
	defer cancel()
	if r.wait(grace) {
		return nil
	}
	return r.abandon()
}

func (r *run) stopBreakers() {
	for _, g := range r.bus.groups.all() {
		g.breaker.Stop()
	}
}

// workOffBacklog blocks until the workers have handled the messages that wait in a transport that is not durable. It does
// not wait for messages with a delay, nor for paused groups.
func (r *run) workOffBacklog(limit context.Context) {
	for r.bus.groups.backlog(func(g *group, now, _ int) int {
		if g.breaker.Paused() {
			return 0
		}
		return now
	}) > 0 {
		select {
		case <-limit.Done():
			return
		case <-r.failed: // the transport delivers nothing any more
			return
		case <-time.After(backlogPoll):
		}
	}
}

// wait blocks until every worker has ended or limit is done, and reports whether every worker has ended.
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
			r.bus.cfg.Logger.Warn("leat: drain is waiting for handlers", "handlers", strings.Join(r.inFlight(), ", "))
		}
	}
}

// inFlight returns the handlers that are running, with the ids of their messages.
func (r *run) inFlight() (names []string) {
	for _, g := range r.bus.groups.all() {
		for _, w := range g.workers {
			if d := w.current.Load(); d != nil {
				names = append(names, fmt.Sprintf("%s (message %s)", g.handler.Name, d.breaker.ID))
			}
		}
	}
	return names
}

// abandon gives back the deliveries of handlers that ignore their context, and returns an error that names them.
func (r *run) abandon() error {
	stuck := r.inFlight()
	for _, g := range r.bus.groups.all() {
		for _, w := range g.workers {
			if d := w.current.Load(); d != nil {
				g.giveBack(d)
			}
		}
	}
	if len(stuck) == 0 {
		return nil
	}
	consequence := "their messages are redelivered"
	if !r.bus.durable {
		consequence = "their messages are lost, because the transport is not durable"
	}
	return fmt.Errorf("bus: drain: handlers did not return after their context was cancelled: %s; %s", strings.Join(stuck, ", "), consequence)
}

// worker handles one delivery of its group at a time.
type worker struct {
	run      *run
	group    *group
	handling context.Context // the run's, with the group's profiler label
	current  atomic.Pointer[Delivery]
}

// profilerLabel is the label that names the group in profiles. It is set once per worker, so it costs nothing per message.
const profilerLabel = "leat_group"

func (w *worker) work() {
	pprof.SetGoroutineLabels(w.handling)
	done := false
	defer func() {
		if !done { // the handler ended its goroutine with runtime.Goexit; replace the worker
			w.handlerExited()
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
		return w.continueAfter(in.Context(), err)
	}
	return w.take(d, nil)
}

// continueAfter reports whether the worker continues after the receiver returned err. ctx is the context of that call.
func (w *worker) continueAfter(ctx context.Context, err error) bool {
	switch {
	case w.run.intake.Err() != nil:
		return false
	case ctx.Err() != nil: // the group is paused, or there is nothing to probe with
		return true
	default: // also ErrClosed: the application has closed the transport itself
		w.run.fail(w.group.name, err)
		return false
	}
}

// pause blocks until the group resumes or this worker gets the probe token. With the token it handles one message as a
// probe. It reports whether the worker continues.
func (w *worker) pause(in *breaker.Intake) bool {
	select {
	case <-in.Resumed():
		return true
	case <-w.run.intake.Done():
		return false
	case <-in.Probe():
	}
	b := w.group.breaker
	b.BeginProbe()
	ctx, cancel := b.ProbeContext(in.Context())
	defer cancel()
	d, err := w.group.receiver.Next(ctx)
	if err != nil {
		if !w.continueAfter(ctx, err) {
			return false
		}
		b.EndPause(in)
		return true
	}
	return w.take(d, func(d *Delivery) { b.Probing(in, &d.breaker) })
}

// take handles a delivery, and reports whether the worker continues. It calls ready, unless that is nil, before the handler.
func (w *worker) take(received *driver.Delivery, ready func(*Delivery)) bool {
	d := &Delivery{Delivery: *received, received: received}
	if w.run.bus.life.interrupted() { // the drain timeout has passed, and the handlers' context is cancelled
		w.group.giveBack(d)
		return false
	}
	d.breaker.Started = time.Now()
	// The transport may have read these from headers that any producer can write, so they may be out of range.
	d.Attempt, d.Failures = max(d.Attempt, 1), max(d.Failures, driver.FailuresUnknown)
	if d.FailedSince.After(d.breaker.Started) {
		d.FailedSince = d.breaker.Started
	}
	id := driver.MessageID(d.Message)
	d.breaker.ID = id[:min(len(id), driver.MaxClassBytes)] // it is logged
	if ready != nil {
		ready(d)
	}
	w.current.Store(d)
	w.group.handle(w.handling, d)
	w.current.Store(nil)
	return true
}

func (w *worker) handlerExited() {
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
	others   loggedNames // logged types that the handler does not take
	health   health
	breaker  *breaker.Breaker

	keyParked atomic.Bool // a message was poisoned that stops its key, and the poison queue was not asked since

	_      cacheLinePad
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

// publishProduced publishes the messages that the function returns. It is the innermost step: produced events are part of the
// handler's effect, so they must be safe before dedup or the transport marks the message as handled.
func (g *group) publishProduced(fn message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		if d := driver.DeliveryFrom(msg.Context()); d != nil && d.Unreadable != nil { // reached without the poison step only
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
		Program:     driver.Program(),
		Known:       g.handler.known(g.bus.transport.Capabilities()),
		Concurrency: g.handler.Concurrency,
		Order:       g.handler.Order,
		Park:        g.handler.parks(),
		Delays:      g.handler.redeliveryDelays(),
	}
}

// redeliveryDelays returns the delays of redeliveries in the handler's retry policies, sorted and without duplicates. The
// stack may have another default policy; the transport's delay queues are then only less direct.
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

// handle passes one delivery through the stack and settles it.
func (g *group) handle(ctx context.Context, d *Delivery) {
	d.group = g
	d.ctx = deliveryContext{ctx, d}
	d.Message.SetContext(&d.ctx)
	g.counts.inFlight.Add(1)
	g.bus.tracking.inStack.Add(1)
	g.finish(d, g.call(d.Message))
}

// parked ends the in-flight tracking of a message that begins to wait behind a poisoned one: it waits for an operator, so
// Idle must not wait for it. The transport deletes HeaderInstance from the message afterwards.
func (g *group) parked(msg *message.Message) {
	if msg.Metadata[driver.HeaderInstance] == g.bus.encoder.Instance {
		g.counts.parked.Add(1)
		g.bus.tracking.outstanding.Add(-1)
	}
}

// giveBack gives a delivery back to the transport that is not handled, or whose handler does not return.
func (g *group) giveBack(d *Delivery) {
	if err := d.settle(Interrupted, ErrInterrupted); err != nil {
		g.bus.cfg.Logger.Warn("leat: give back failed", "group", g.name, "message_id", d.breaker.ID, "error", err)
	}
}

// call calls the stack. It recovers panics that no recover step has recovered.
func (g *group) call(msg *message.Message) (err error) {
	defer func() {
		if v := recover(); v != nil {
			g.counts.panics.Add(1)
			err = driver.NewPanicError(v)
		}
	}()
	produced, err := g.fn(msg)
	if err == nil && len(produced) > 0 { // from a step of the stack; those of the handler are published already
		err = g.bus.PublishMessages(msg.Context(), produced...)
	}
	return err
}

// finish settles a delivery and counts its outcome. It recovers panics, such as those of an error's Error method, so that a
// message can't end the process.
func (g *group) finish(d *Delivery, err error) {
	if h := g.counts.durations.Load(); h != nil {
		h.add(time.Since(d.breaker.Started) - d.waited)
	}
	outcome, settling := Redelivered, true
	defer g.bus.tracking.inStack.Add(-1)
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
		g.bus.cfg.Logger.Warn("leat: settle failed; the message may be redelivered",
			"group", g.name, "message_id", d.breaker.ID, "outcome", string(outcome), "error", settleErr)
	}
	settling = false
	handledBefore := outcome == Duplicate && d.Attempt-1 > d.Failures // an earlier delivery counted it already, but its ack was lost
	if outcome.Terminal() && d.Own() && !handledBefore {
		g.counts.settled.Add(1)
		g.bus.tracking.outstanding.Add(-1)
	}
	switch outcome {
	case Discarded:
		g.logOther(d, err)
	case Poisoned:
		g.warnParked(d)
	}
}

// logOther logs an event of a type that the handler does not take, once for each type.
func (g *group) logOther(d *Delivery, err error) {
	other, ok := errors.AsType[*OtherEventError](err)
	if !ok {
		return
	}
	name := driver.OneLine(other.Have.String(), driver.MaxClassBytes) // foreign producers choose it, so it is bounded
	first, last := g.others.first(name)
	if first {
		g.bus.cfg.Logger.Warn("leat: discarded an event of a type that the handler does not take (logged once per type)", "group", g.name,
			"type", name, "topic", driver.OneLine(d.Topic, driver.MaxClassBytes), "takes", typeNames(other.Takes),
			"fix", "if another program consumes this group, too, it loses this type's events here: give one of them another LEAT_SERVICE, or Config.Service")
	}
	if last {
		g.bus.cfg.Logger.Warn("leat: discarded events of many types that the handler does not take; more of them are counted only, and not logged", "group", g.name)
	}
}

// decide handles an error that neither the retry step nor the poison step has handled: it returns a redelivery, or poisons
// the message. Such an error comes from a step outside of poison, from a handler that ended its goroutine, or from a stack
// without retry and poison steps.
func (g *group) decide(d *Delivery, err error) (Outcome, error) {
	var after time.Duration
	var end error
	r, decided := errors.AsType[*Redelivery](err)
	switch {
	case !decided && (d.givenUp || IsPermanent(err)):
		d.givenUp, end = true, err
	case decided && (d.breaker.Failed() || r.Uncounted || r.Err == nil):
		return Redelivered, err
	case decided: // by a step of the application
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
			g.bus.cfg.Logger.Warn("leat: message poisoned without a poison step", "group", g.name, "message_id", d.breaker.ID, "error", err)
			return Poisoned, nil
		}
	}
	return Redelivered, end
}

// endless returns the next try on a bus without a stack, which retries for ever. The delay grows up to a minute, so that
// there is no busy loop.
func endless(d *Delivery, err error) nextTry {
	asked, _ := retryDelay(err)
	grown := min(time.Second<<min(max(d.Failures, 0), 6), time.Minute)
	return nextTry{after: max(asked, grown), asked: asked > grown}
}

// rescueDelay is the delay of the redelivery after settling a message has panicked.
const rescueDelay = 10 * time.Second

// rescue logs a panic of finish. If the delivery is not settled yet, rescue gives it back, so that the message does not stay
// in flight until the process ends.
func (g *group) rescue(d *Delivery, panicked *PanicError, settling bool) {
	defer func() {
		if v := recover(); v != nil {
			g.bus.cfg.Logger.Error("leat: give back after a panic failed", "group", g.name, "message_id", d.breaker.ID, "error", driver.NewPanicError(v))
		}
	}()
	if !settling {
		g.bus.cfg.Logger.Error("leat: panic after a delivery was settled", "group", g.name, "message_id", d.breaker.ID, "error", panicked, "stack", panicked.Stack())
		return
	}
	g.bus.cfg.Logger.Error("leat: panic while settling; the message is given back", "group", g.name,
		"message_id", d.breaker.ID, "error", panicked, "stack", panicked.Stack())
	if err := d.Settler.GiveBack(rescueDelay); err != nil {
		g.bus.cfg.Logger.Warn("leat: give back failed", "group", g.name, "message_id", d.breaker.ID, "error", err)
	}
}
