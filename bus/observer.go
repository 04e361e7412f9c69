package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// Outcome is how a delivery ended.
type Outcome string

// Outcomes. All but Redelivered and Interrupted are terminal: the group is done with the message.
const (
	Handled     Outcome = "handled"     // the handler succeeded
	Duplicate   Outcome = "duplicate"   // handled before; acked without its handler
	Poisoned    Outcome = "poisoned"    // in the poison queue, confirmed
	Discarded   Outcome = "discarded"   // failed, and the handler wanted it dropped
	Redelivered Outcome = "redelivered" // comes again
	Interrupted Outcome = "interrupted" // cut short by shutdown; comes again, at no cost
)

// Terminal reports whether the group is done with the message.
func (o Outcome) Terminal() bool { return o != Redelivered && o != Interrupted }

// Observer is told what happens to messages: metrics, logs, traces. Its methods are called
// concurrently, on the path of the message: they must be quick and must not block. They never decide what
// becomes of a message: a panic is logged once and counted.
type Observer interface {
	// Published is called when the transport has answered a Publish.
	Published(ctx context.Context, p Publication)
	// Started is called before a delivery goes down the stack. What it returns becomes the
	// context of everything further in.
	Started(ctx context.Context, d *Delivery) context.Context
	// Finished is called once per delivery, with its final outcome.
	Finished(ctx context.Context, d *Delivery, o Observation)
	// BreakerChanged is called when a group's circuit breaker changes its state; for one group, one change after the
	// other.
	BreakerChanged(c BreakerChange)
}

// PublishObserver is an [Observer] that is also told when a publish begins, as a tracer must be.
type PublishObserver interface {
	Observer
	// Publishing is called before messages of one topic go through the publish middleware to the transport, or into an
	// outbox. It may set their headers. The context it returns is that of everything further in. end is called with the
	// answer; it may be nil.
	//
	// With relayed, the messages come out of an outbox on their way to the transport. They have been through Publishing,
	// in another process perhaps, and it must not change them.
	Publishing(ctx context.Context, topic string, msgs []*message.Message, relayed bool) (inner context.Context, end func(error))
}

// BatchObserver is an [Observer] that is also told when a handler takes several deliveries at once, as that of handlers.Batch
// does. Each of them is observed by itself as well.
type BatchObserver interface {
	Observer
	// Batching is called before the handler's function. The context it returns is that of the function. end is called with
	// what the function returns; it may be nil.
	Batching(ctx context.Context, ds []*Delivery) (inner context.Context, end func(error))
}

// Batching tells the observers that a function takes deliveries together, with d among them. The caller passes the context
// on to the function, and calls end with what it returns.
func (d *Delivery) Batching(ctx context.Context, ds []*Delivery) (inner context.Context, end func(error)) {
	var ends []func(error)
	inner = ctx
	for _, o := range d.Observers() {
		guarded := o.(*guardedObserver)
		if b, ok := guarded.observer.(BatchObserver); ok {
			var e func(error)
			inner, e = guarded.began(inner, func(ctx context.Context) (context.Context, func(error)) { return b.Batching(ctx, ds) }) //nolint:fatcontext // as many layers as observers
			ends = append(ends, e)
		}
	}
	return inner, func(err error) {
		for _, e := range slices.Backward(ends) {
			if e != nil {
				e(err)
			}
		}
	}
}

// sendFunc publishes messages of one topic.
type sendFunc = func(ctx context.Context, topic string, msgs []*message.Message) error

// announce returns send with the observers around it that are told when a publish begins.
func announce(observers []Observer, send sendFunc, relayed bool) sendFunc {
	for _, o := range slices.Backward(observers) {
		guarded := o.(*guardedObserver)
		p, ok := guarded.observer.(PublishObserver)
		if !ok {
			continue
		}
		next := send
		send = func(ctx context.Context, topic string, msgs []*message.Message) error {
			inner, end := guarded.began(ctx, func(ctx context.Context) (context.Context, func(error)) {
				return p.Publishing(ctx, topic, msgs, relayed)
			})
			if end == nil {
				return next(inner, topic, msgs)
			}
			err := errPublishPanicked
			defer func() { end(err) }()
			err = next(inner, topic, msgs)
			return err
		}
	}
	return send
}

var errPublishPanicked = errors.New("a step of the publish middleware, or the transport, panicked")

// GuardObserver returns an observer that passes everything on to o. If o panics, the
// panic is logged, once, and counted in [Stats], and what o observes goes on as if it had not been called. New
// guards the observers of a bus; a stock Watermill router needs this for its own.
func GuardObserver(o Observer, logger *slog.Logger) Observer { return guardObserver(o, logger, nil) }

func guardObserver(o Observer, logger *slog.Logger, panics *atomic.Uint64) *guardedObserver {
	if logger == nil {
		logger = slog.Default()
	}
	if panics == nil {
		panics = new(atomic.Uint64)
	}
	return &guardedObserver{observer: o, logger: logger, panics: panics}
}

// guardedObserver keeps an observer's panics from deciding what becomes of a message.
type guardedObserver struct {
	observer Observer
	logger   *slog.Logger
	panics   *atomic.Uint64
	logged   atomic.Bool
}

func (g *guardedObserver) Published(ctx context.Context, p Publication) {
	defer g.recover()
	g.observer.Published(ctx, p)
}

// began calls what begins something. The end that it returns is guarded as well.
func (g *guardedObserver) began(ctx context.Context, begin func(context.Context) (context.Context, func(error))) (inner context.Context, end func(error)) {
	inner = ctx
	defer g.recover()
	c, e := begin(ctx)
	if c != nil {
		inner = c
	}
	if e != nil {
		end = func(err error) {
			defer g.recover()
			e(err)
		}
	}
	return inner, end
}

func (g *guardedObserver) Started(ctx context.Context, d *Delivery) (inner context.Context) {
	inner = ctx
	defer g.recover()
	if c := g.observer.Started(ctx, d); c != nil {
		inner = c
	}
	return inner
}

func (g *guardedObserver) Finished(ctx context.Context, d *Delivery, o Observation) {
	defer g.recover()
	g.observer.Finished(ctx, d, o)
}

func (g *guardedObserver) BreakerChanged(c BreakerChange) {
	defer g.recover()
	g.observer.BreakerChanged(c)
}

// recover must be deferred itself.
func (g *guardedObserver) recover() {
	v := recover()
	if v == nil {
		return
	}
	g.panics.Add(1)
	if g.logged.CompareAndSwap(false, true) {
		err := driver.NewPanicError(v)
		g.logger.Error("leat: observer panicked; further panics are counted, not logged", "observer", fmt.Sprintf("%T", g.observer),
			"error", err, "stack", err.Stack())
	}
}

// Publication is one call of the transport's Publish.
type Publication struct {
	Topic    string
	Messages []*message.Message
	Took     time.Duration
	Err      error // nil also where nobody wanted the message, unless that was asked to be an error
	Unrouted int   // how many reached no group
}

// Observation is the end of one delivery.
type Observation struct {
	Outcome Outcome
	Took    time.Duration // in the stack, retries in process included
	Waited  time.Duration // of that: between tries, while the handler did not run
	Err     error         // why it was not handled; nil for handled and duplicate
}
