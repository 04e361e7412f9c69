package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// The screen is an observer of the bus, which reports the outcome of every delivery. It shows the first
// deliveries of each kind only, because there may be a million messages.

var _ bus.Observer = (*screen)(nil)

// perKind is how many deliveries of one kind are shown, and maxKinds the number of kinds, since types and errors
// may come from untrusted producers.
const (
	perKind  = 3
	maxKinds = 40
)

// Published implements [bus.Observer]. Only the outcomes of messages are shown.
func (v *screen) Published(context.Context, bus.Publication) {}

// Started implements [bus.Observer].
func (v *screen) Started(ctx context.Context, _ *bus.Delivery) context.Context { return ctx }

// Finished implements [bus.Observer].
func (v *screen) Finished(_ context.Context, d *bus.Delivery, o bus.Observation) {
	if v.json || !v.samples.take(kindOf(d, o)) {
		return
	}
	e := bus.EnvelopeOf(d.Message)
	rest := fmt.Sprintf("  %-13s  %-16s  %-10s  %s", d.Handler().Name, clean(e.Type), clean(e.Subject), clean(remark(d, o)))
	v.printf(v.story, "%s%s\n", v.paint(colourOf(o.Outcome), fmt.Sprintf("%-11s", o.Outcome)), strings.TrimRight(rest, " "))
}

func remark(d *bus.Delivery, o bus.Observation) string {
	tries := ""
	if d.Try > 1 {
		tries = fmt.Sprintf("%d tries", d.Try)
	}
	r, again := errors.AsType[*bus.Redelivery](o.Err)
	switch {
	case again && r.Err != nil:
		return fmt.Sprintf("again in %s: %v", r.After.Round(time.Millisecond), r.Err)
	case o.Err != nil && tries != "":
		return fmt.Sprintf("after %s: %v", tries, o.Err)
	case o.Err != nil:
		return o.Err.Error()
	case o.Outcome == bus.Duplicate:
		return "handled before"
	default:
		return tries
	}
}

func colourOf(o bus.Outcome) string {
	switch o {
	case bus.Handled:
		return green
	case bus.Duplicate:
		return blue
	case bus.Redelivered:
		return yellow
	case bus.Poisoned:
		return red
	default:
		return dim
	}
}

// clean escapes untrusted text for a terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, driver.OneLine(text, 200))
}

// kind groups similar deliveries.
type kind struct {
	outcome bus.Outcome
	group   string
	failed  string // type of the message and class of the error, if there is one
	tried   bool   // more than once
}

func kindOf(d *bus.Delivery, o bus.Observation) kind {
	k := kind{outcome: o.Outcome, group: d.Group, tried: d.Try > 1}
	if o.Err != nil {
		k.failed = driver.TopicOf(d.Message) + " " + driver.ErrorClass(o.Err)
	}
	return k
}

// samples picks the first deliveries of each kind.
type samples struct {
	mu    sync.Mutex
	taken map[kind]int
}

func (s *samples) take(k kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, known := s.taken[k]
	if n >= perKind || !known && len(s.taken) >= maxKinds {
		return false
	}
	if s.taken == nil {
		s.taken = make(map[kind]int)
	}
	s.taken[k] = n + 1
	return true
}

// How often the progress is shown, on a terminal and as separate lines elsewhere.
const (
	onTerminal = 100 * time.Millisecond
	elsewhere  = 5 * time.Second
)

// showProgress shows the progress until work is done.
func (v *screen) showProgress(work context.Context, in *input, b *bus.Bus) {
	every := elsewhere
	if v.terminal != nil {
		every = onTerminal
		defer v.setProgress("")
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-work.Done():
			return
		case <-tick.C:
		}
		if text := v.howFar(in, b.Stats()); v.terminal != nil {
			v.setProgress(text)
		} else {
			v.printf(v.story, "%s\n", text)
		}
	}
}

func (v *screen) howFar(in *input, s bus.Stats) string {
	settled, waiting := settledBy(s), lostBy(s)
	took := time.Since(v.began)
	return fmt.Sprintf("%.1fs  %s lines read · %s outcomes, %s/s · %s to come", took.Seconds(),
		thousands(in.read.Load()), thousands(settled), thousands(uint64(float64(settled)/took.Seconds())), thousands(waiting))
}

func (*screen) BreakerChanged(bus.BreakerChange) {}
