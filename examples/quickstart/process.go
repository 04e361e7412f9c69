package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/leatbus/leat/bus"
)

const (
	// drainTime is how long published messages may take after Ctrl-C.
	drainTime = 10 * time.Second
	// closeTime is how long running handlers may take after that.
	closeTime = 3 * time.Second
)

// process publishes the input while the bus handles it, waits until every message has an outcome in every
// group, and returns the bus's statistics. It returns an error for failures that do not concern single messages.
func process(ctx context.Context, b *bus.Bus, s settings, view *screen) (report, error) {
	work, giveUp := context.WithCancelCause(context.WithoutCancel(ctx))
	defer giveUp(nil)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		giveUp(b.Run(context.WithoutCancel(ctx)))
	}()
	var beside sync.WaitGroup
	in := &input{from: s.input, reject: view.rejected}
	beside.Go(func() { watch(ctx, work, b, s.patience, view, giveUp) })
	beside.Go(func() { view.showProgress(work, in, b) })

	var err error
	select {
	case <-b.Running():
		err = in.publish(ctx, work, b)
		_ = b.Idle(work) // the cause of work has the reason of an early end
	case <-stopped:
	}

	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	closeErr := b.Close(closing)
	<-stopped // then work has ended, and the goroutines that use it
	beside.Wait()
	if cause := context.Cause(work); !errors.Is(cause, context.Canceled) {
		err = cause // publish failed because of it
	}
	return newReport(in, b.Stats()), errors.Join(err, closeErr)
}

// watch calls giveUp if the published messages take too long after Ctrl-C, or if no message gets an outcome for
// the length of patience, for example because a poison queue is full or Redis can't be reached.
func watch(ctx, work context.Context, b *bus.Bus, patience time.Duration, view *screen, giveUp context.CancelCauseFunc) {
	tick := time.NewTicker(patience / 8)
	defer tick.Stop()
	var drained <-chan time.Time
	interrupted := ctx.Done()
	settled, since := uint64(0), time.Now()
	for {
		select {
		case <-work.Done():
			return
		case <-interrupted:
			view.say("no more is read; what is published already is handled (Ctrl-C again to quit at once)")
			interrupted, drained = nil, time.After(drainTime)
		case <-drained:
			giveUp(fmt.Errorf("%s after the interrupt some messages had not come to their end%s", drainTime, complaints(b)))
		case now := <-tick.C:
			stats := b.Stats()
			if n := settledBy(stats); n != settled || lostBy(stats) == 0 {
				settled, since = n, now
			}
			if now.Sub(since) >= patience {
				giveUp(fmt.Errorf("no message came to its end for %s%s", patience, complaints(b)))
			}
		}
	}
}

// complaints returns the degraded parts of the groups.
func complaints(b *bus.Bus) (text string) {
	for _, h := range b.Health() {
		for part, reason := range h.Degraded {
			text += fmt.Sprintf("; %s: %s: %s", h.Group, part, reason)
		}
	}
	return text
}
