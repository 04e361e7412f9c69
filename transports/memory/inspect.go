package memory

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.Inspector = (*Transport)(nil)

// Groups implements [driver.Inspector]. It returns the groups that were subscribed. Oldest is that of the waiting messages.
func (t *Transport) Groups(context.Context) ([]driver.GroupInfo, error) {
	var all []driver.GroupInfo
	for _, g := range t.subscribed() {
		all = append(all, g.info())
	}
	return all, t.openOrErr()
}

// Topics implements [driver.Inspector].
func (t *Transport) Topics(context.Context) ([]driver.TopicInfo, error) {
	groups := make(map[string][]string)
	for _, g := range t.subscribed() {
		for _, topic := range g.info().Topics {
			groups[topic] = append(groups[topic], g.name)
		}
	}
	all := []driver.TopicInfo{}
	for _, topic := range slices.Sorted(maps.Keys(groups)) {
		all = append(all, driver.TopicInfo{Topic: topic, Groups: groups[topic]})
	}
	return all, t.openOrErr()
}

// Diagnose implements [driver.Inspector]. It has little to check, since nothing is outside of the process.
func (t *Transport) Diagnose(context.Context) []driver.Finding {
	if err := t.openOrErr(); err != nil {
		return []driver.Finding{{Check: "transport in memory", Err: err, Fix: "correct its configuration, and start the service again"}}
	}
	return []driver.Finding{{Check: "transport in memory", Text: "open; what waits in it is lost when the process ends"}}
}

func (t *Transport) openOrErr() error {
	if t.closed.Load() {
		return driver.ErrClosed
	}
	return t.err
}

// subscribed returns the groups that were subscribed, by name. Other groups exist only because PoisonQueue was called for them.
func (t *Transport) subscribed() (all []*group) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range t.groups {
		g.mu.Lock()
		if len(g.topics) > 0 {
			all = append(all, g)
		}
		g.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b *group) int { return cmp.Compare(a.name, b.name) })
	return all
}

// info returns the group's counts.
func (g *group) info() driver.GroupInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	return driver.GroupInfo{
		Name:       g.name,
		Topics:     slices.Sorted(slices.Values(g.topics)),
		Waiting:    max(g.unsettled-g.out-g.delayed.Len(), 0),
		Delayed:    g.delayed.Len(),
		Parked:     g.keys.parked,
		ParkedKeys: g.keys.heldBack(),
		InFlight:   g.out,
		Poisoned:   len(g.poison.list),
		Consumers:  g.receivers,
		Oldest:     g.oldest(),
	}
}

// oldest returns when the oldest waiting message was published.
func (g *group) oldest() (oldest time.Time) {
	visit := func(it *item) {
		if oldest.IsZero() || it.since.Before(oldest) {
			oldest = it.since
		}
	}
	g.ready.Each(visit)
	for _, q := range g.keys.byKey {
		q.waiting.Each(visit)
	}
	for it := range g.delayed.All() {
		visit(it)
	}
	return oldest
}
