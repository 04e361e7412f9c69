package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// A poisoned message of a group that parks stops its key: the later ones of the key wait until somebody replays or drops
// it. Operators must see that, so it is a warning in the log once per key, and a part of the group's health, "parked",
// while a key is held back. The transport is asked, and nothing is counted here: other processes of the group poison
// messages, too, and operators replay them from anywhere. Groups are asked one by one, so that a process with many of them
// asks no more than two a second.

const (
	partParked    = "parked"
	parkedEvery   = time.Minute            // for each group, if that keeps the pace
	parkedPace    = 500 * time.Millisecond // between two questions, at least
	parkedTimeout = 10 * time.Second       // of one question
)

// parking returns the groups in which a poisoned message stops its key.
func (gs *groups) parking() (all []*group) {
	gs.each(func(g *group) {
		if _, counts := g.receiver.(driver.ParkedKeyCounter); counts && g.handler.parks() {
			all = append(all, g)
		}
	})
	return all
}

// watchParked keeps the part "parked" of the groups' health until stop is called, which waits for the end of it.
func (gs *groups) watchParked(ctx context.Context) (stop func()) {
	parking := gs.parking()
	if len(parking) == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		gs.checkParked(ctx, parking)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// checkParked checks the groups that park until ctx is done: one after the other, and at once one in which a key was parked.
func (gs *groups) checkParked(ctx context.Context, parking []*group) {
	for _, g := range parking {
		g.checkParked(ctx)
	}
	ticker := time.NewTicker(max(parkedEvery/time.Duration(len(parking)), parkedPace))
	defer ticker.Stop()
	for next := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			parking[next].checkParked(ctx)
			next = (next + 1) % len(parking)
		case <-gs.keyParked:
			for _, g := range parking {
				if g.keyParked.Swap(false) {
					g.checkParked(ctx)
				}
			}
		}
	}
}

// checkParked asks the transport. If it does not answer, the health stays as it is: other parts say why.
func (g *group) checkParked(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, parkedTimeout)
	defer cancel()
	n, err := g.receiver.(driver.ParkedKeyCounter).ParkedKeys(ctx)
	if err != nil {
		return
	}
	var reason error
	if n > 0 {
		held, it := "a poisoned message holds back the later messages of its key", "it is"
		switch {
		case g.handler.Order == OrderedStrictly:
			held = "a poisoned message holds back all later messages of the group"
		case n > 1:
			held, it = fmt.Sprintf("poisoned messages hold back the later messages of %d keys", n), "they are"
		}
		reason = fmt.Errorf("%s until %s replayed or dropped: leat poison ls --group %s", held, it, g.name)
	}
	g.health.set(partParked, reason)
}

// warnParked says that a poisoned message stops its key. Of an ordered group by key, a message without one stops nothing.
func (g *group) warnParked(d *Delivery) {
	if !g.handler.parks() || g.handler.Order == OrderedByKey && driver.PartitionKey(d.Message) == "" {
		return
	}
	g.bus.cfg.Logger.Warn("leat: key parked: its later messages wait until this one is replayed or dropped", "group", g.name,
		"key", driver.OneLine(driver.PartitionKey(d.Message), driver.MaxClassBytes), "message_id", d.breaker.ID,
		"fix", "leat poison show "+d.breaker.ID+" --group "+g.name)
	g.keyParked.Store(true)
	select {
	case g.bus.groups.keyParked <- struct{}{}:
	default:
	}
}
