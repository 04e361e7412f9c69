package bus

import (
	"context"
	"fmt"
	"log/slog"
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
			"err", err, "stack", err.Stack())
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
	Err     error         // why it was not handled; nil for handled and duplicate
}
