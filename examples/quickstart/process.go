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
	// drainTime is how long what was published may take after Ctrl-C.
	drainTime = 10 * time.Second
	// closeTime is how long handlers may take that are still at work then.
	closeTime = 3 * time.Second
)

// process publishes the input while the bus handles it, waits until every message has come to its end in
// every group, and asks the bus what happened. The error is what went wrong beyond single messages.
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
		_ = b.Idle(work) // that it ended early shows in work's cause
	case <-stopped:
	}

	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	closeErr := b.Close(closing)
	<-stopped // which ends work, and what stands beside it
	beside.Wait()
	if cause := context.Cause(work); !errors.Is(cause, context.Canceled) {
		err = cause // what publish met was its consequence
	}
	return newReport(in, b.Stats()), errors.Join(err, closeErr)
}

// watch gives up when what was published takes too long after Ctrl-C, and when no message comes to its end
// for the length of patience although some should: a poison queue is full, say, or Redis went away.
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

// complaints is what the groups report as wrong with themselves.
func complaints(b *bus.Bus) (text string) {
	for _, h := range b.Health() {
		for part, reason := range h.Degraded {
			text += fmt.Sprintf("; %s: %s: %s", h.Group, part, reason)
		}
	}
	return text
}
