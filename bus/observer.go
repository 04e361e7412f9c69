package bus

import (
	"cmp"
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
	Discarded   Outcome = "discarded"   // failed and dropped, as the handler asked
	Redelivered Outcome = "redelivered" // will be delivered again
	Interrupted Outcome = "interrupted" // interrupted by shutdown; will be delivered again, and does not count as an attempt
)

// Terminal reports whether the group is done with the message.
func (o Outcome) Terminal() bool { return o != Redelivered && o != Interrupted }

// An Observer observes messages, for metrics, logs and traces. Its methods are called concurrently and synchronously: they
// must be quick and must not block. They can't change the outcome of a message: a panic is logged once and counted.
type Observer interface {
	// Published is called after the transport has returned from Publish.
	Published(ctx context.Context, p Publication)
	// Started is called before the other steps of the stack. They get the context that it returns.
	Started(ctx context.Context, d *Delivery) context.Context
	// Finished is called once per delivery, with its final outcome.
	Finished(ctx context.Context, d *Delivery, o Observation)
	// BreakerChanged is called when a group's circuit breaker changes its state. Calls for one group do not overlap.
	BreakerChanged(c BreakerChange)
}

// A PublishObserver is an [Observer] that also observes the beginning of a publish, as tracers need it.
type PublishObserver interface {
	Observer
	// Publishing is called before messages of one topic go through the publish middleware to the transport or an outbox. It
	// may set their headers. The publish middleware and the transport get the context that it returns. end is called with the
	// result of the publish; it may be nil.
	//
	// relayed is true for messages that an outbox publishes to the transport. Publishing was called for them before,
	// perhaps in another process, and must not change them now.
	Publishing(ctx context.Context, topic string, msgs []*message.Message, relayed bool) (inner context.Context, end func(error))
}

// A BatchObserver is an [Observer] that also observes when a handler handles several deliveries at once, as that of
// handlers.Batch does. Each of the deliveries is observed separately as well.
type BatchObserver interface {
	Observer
	// Batching is called before the handler's function, which gets the context that it returns. end is called with the error
	// that the function returns; it may be nil.
	Batching(ctx context.Context, ds []*Delivery) (inner context.Context, end func(error))
}

// Batching calls the observers before a function handles several deliveries at once; d is one of them. The caller passes the
// context inner to the function, and calls end with the error that the function returns.
func (d *Delivery) Batching(ctx context.Context, ds []*Delivery) (inner context.Context, end func(error)) {
	var ends []func(error)
	inner = ctx
	for _, o := range d.Observers() {
		guarded := o.(*guardedObserver)
		if b, ok := guarded.observer.(BatchObserver); ok {
			var e func(error)
			inner, e = guarded.guardBegin(inner, func(ctx context.Context) (context.Context, func(error)) { return b.Batching(ctx, ds) }) //nolint:fatcontext // as many layers as observers
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

// withPublishObservers returns a sendFunc that calls each PublishObserver around send.
func withPublishObservers(observers []Observer, send sendFunc, relayed bool) sendFunc {
	for _, o := range slices.Backward(observers) {
		guarded := o.(*guardedObserver)
		p, ok := guarded.observer.(PublishObserver)
		if !ok {
			continue
		}
		next := send
		send = func(ctx context.Context, topic string, msgs []*message.Message) error {
			inner, end := guarded.guardBegin(ctx, func(ctx context.Context) (context.Context, func(error)) {
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

// GuardObserver returns an observer that calls o and recovers its panics. The first panic is logged. New guards the observers
// of a bus in this way, and counts their panics in [Stats]; use GuardObserver for observers under a stock Watermill router. A
// nil logger means slog.Default().
func GuardObserver(o Observer, logger *slog.Logger) Observer { return guardObserver(o, logger, nil) }

func guardObserver(o Observer, logger *slog.Logger, panics *atomic.Uint64) *guardedObserver {
	logger = cmp.Or(logger, slog.Default())
	panics = cmp.Or(panics, new(atomic.Uint64))
	return &guardedObserver{observer: o, logger: logger, panics: panics}
}

// guardedObserver recovers the panics of an observer, so that they can't change the outcome of a message.
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

// guardBegin calls begin and recovers its panics, and those of the function that begin returns.
func (g *guardedObserver) guardBegin(ctx context.Context, begin func(context.Context) (context.Context, func(error))) (inner context.Context, end func(error)) {
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

// recover logs and counts a panic. It must be deferred directly.
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
	Err      error // an unroutable message is an error only if it was asked to be one
	Unrouted int   // messages that reached no group
}

// Observation describes the end of one delivery.
type Observation struct {
	Outcome Outcome
	Took    time.Duration // time in the stack, retries in process included
	Waited  time.Duration // part of Took between tries, while the handler did not run
	Err     error         // why the message was not handled; nil for handled and duplicate
}
