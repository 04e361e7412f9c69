package memory

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.Inspector = (*Transport)(nil)

// Groups are the groups that were subscribed. The oldest message is that of those that wait.
func (t *Transport) Groups(context.Context) ([]driver.GroupInfo, error) {
	var all []driver.GroupInfo
	for _, q := range t.subscribed() {
		all = append(all, q.info())
	}
	return all, t.openOrErr()
}

// Topics are the topics and patterns that groups ask for now.
func (t *Transport) Topics(context.Context) ([]driver.TopicInfo, error) {
	groups := make(map[string]*driver.TopicInfo)
	var all []*driver.TopicInfo
	for _, q := range t.subscribed() {
		for _, topic := range q.info().Topics {
			if groups[topic] == nil {
				groups[topic] = &driver.TopicInfo{Topic: topic}
				all = append(all, groups[topic])
			}
			groups[topic].Groups = append(groups[topic].Groups, q.group)
		}
	}
	slices.SortFunc(all, func(a, b *driver.TopicInfo) int { return cmp.Compare(a.Topic, b.Topic) })
	infos := make([]driver.TopicInfo, len(all))
	for i, info := range all {
		infos[i] = *info
	}
	return infos, t.openOrErr()
}

// Diagnose has little to check: there is nothing outside of the process.
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

// subscribed are the queues that somebody has subscribed, by name. Others were only asked for their
// poison queue.
func (t *Transport) subscribed() (all []*queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range t.queues {
		q.mu.Lock()
		if len(q.topics) > 0 {
			all = append(all, q)
		}
		q.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b *queue) int { return cmp.Compare(a.group, b.group) })
	return all
}

// info counts what the queue holds.
func (q *queue) info() driver.GroupInfo {
	q.mu.Lock()
	defer q.mu.Unlock()
	return driver.GroupInfo{
		Name:      q.group,
		Topics:    slices.Sorted(slices.Values(q.topics)),
		Waiting:   max(q.size-q.out-len(q.later), 0),
		Delayed:   len(q.later),
		Parked:    q.countParked(),
		InFlight:  q.out,
		Poisoned:  len(q.poison),
		Consumers: q.feeds,
		Oldest:    q.oldest(),
	}
}

// oldest is when the oldest message came that waits. The caller holds q.mu.
func (q *queue) oldest() (oldest time.Time) {
	look := func(it *item) {
		if oldest.IsZero() || it.since.Before(oldest) {
			oldest = it.since
		}
	}
	q.ready.each(look)
	for _, lane := range q.lanes {
		lane.waiting.each(look)
	}
	for _, it := range q.later {
		look(it)
	}
	return oldest
}
