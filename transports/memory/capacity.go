package memory

import (
	"container/list"
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// A group has three capacities, which are weighted semaphores of messages and bytes. A message acquires one of them when it is
// published and releases it when it is settled:
//
//   - waiting: for messages that wait to be handled, are in a handler, or wait for their next try
//   - delayed: for messages that were published with a delay, also after the delay
//   - parked: for messages that wait behind a poisoned message of their key, also after the key was released. A message that
//     begins to be parked later moves here if it fits; otherwise it stays in its capacity.
//
// Messages move between capacities in no other way, so their sum is bounded. A full capacity blocks only the publishers whose
// messages would acquire it.
const (
	waitingCapacity = iota
	delayedCapacity
	parkedCapacity
	capacities
)

// capacity is one of these semaphores. The group's mutex guards it.
type capacity struct {
	what   string // its name in errors and logs
	limit  int    // messages; 0 means any number
	bound  int    // bytes
	count  int
	bytes  int
	warned time.Time

	// blocked has the publishers that wait for this capacity, by class, oldest first. No publisher overtakes the first one.
	blocked [classes]list.List
}

// The classes of publishers. Handlers go before others.
const (
	handlerClass = iota
	otherClass
	classes
)

// handlerOverdraft is the factor by which publishing handlers may exceed the bounds of a capacity.
const handlerOverdraft = 8

// blockedNotice is the shortest time between two log lines about the same full capacity.
const blockedNotice = time.Minute

func overdraft(class int) int {
	if class == handlerClass {
		return handlerOverdraft
	}
	return 1
}

// fits reports whether count more messages with a total of bytes are within the bounds. One message always fits into an empty
// capacity.
func (a *capacity) fits(count, bytes, overdraft int) bool {
	return (a.limit == 0 || a.count+count <= a.limit*overdraft) &&
		(a.bytes+bytes <= a.bound*overdraft || a.count == 0 && count == 1)
}

// admits reports whether a message may acquire the capacity now: it fits, and no publisher that goes before is blocked.
func (a *capacity) admits(size, class int, ticket uint64) bool {
	for c := range class + 1 {
		if first := a.blocked[c].Front(); first != nil && (c < class || first.Value.(*publisher).ticket < ticket) {
			return false
		}
	}
	return a.fits(1, size, overdraft(class))
}

func (a *capacity) acquire(it *item) {
	it.capacity = a
	a.count++
	a.bytes += it.size
}

// release releases what a message has acquired, and wakes blocked publishers.
func (a *capacity) release(it *item) {
	a.count--
	a.bytes -= it.size
	a.wake()
}

// wake wakes the first blocked publishers whose messages fit. They stay in the list until they are admitted, find another
// capacity full, or give up; each of these calls wake again.
func (a *capacity) wake() {
	count, bytes := 0, 0
	for class := range a.blocked {
		for el := a.blocked[class].Front(); el != nil; el = el.Next() {
			p := el.Value.(*publisher)
			count++
			bytes += p.it.size
			if !a.fits(count, bytes, overdraft(class)) {
				return
			}
			p.tryAgain()
		}
	}
}

// wakeAll wakes all blocked publishers, because they may need another capacity now.
func (a *capacity) wakeAll() {
	for class := range a.blocked {
		for el := a.blocked[class].Front(); el != nil; el = el.Next() {
			el.Value.(*publisher).tryAgain()
		}
	}
}

// publisher is a call of Publish that is blocked by a full capacity. The mutex of the group in which it waits guards it. While it
// waits it has no lock, and has acquired nothing in
// the other groups of its message. When it is woken it tries again from the start.
type publisher struct {
	it     item
	class  int
	ticket uint64 // its age: a lower ticket is older

	group    *group // the group in which it waits; nil if it does not wait
	capacity *capacity
	element  *list.Element
	woken    chan struct{} // has room for one token
}

func (p *publisher) tryAgain() {
	select {
	case p.woken <- struct{}{}:
	default: // it is woken already
	}
}

// join makes the publisher wait for a capacity, and reports whether it did not wait for it before. Older publishers go first, so
// that one that needs capacity in several groups makes progress.
func (p *publisher) join(g *group, a *capacity) bool {
	if p.capacity == a {
		return false
	}
	p.leave()
	p.group, p.capacity = g, a
	blocked := &a.blocked[p.class]
	older := blocked.Back()
	for older != nil && older.Value.(*publisher).ticket > p.ticket {
		older = older.Prev()
	}
	if older == nil {
		p.element = blocked.PushFront(p)
	} else {
		p.element = blocked.InsertAfter(p, older)
	}
	return true
}

// leave removes the publisher from the list of blocked ones and wakes others.
func (p *publisher) leave() {
	a := p.capacity
	if a == nil {
		return
	}
	a.blocked[p.class].Remove(p.element)
	p.group, p.capacity, p.element = nil, nil, nil
	a.wake()
}

// newcomer is the ticket of a publisher that has not waited yet: all blocked ones go before it.
const newcomer = math.MaxUint64

// enqueue puts a copy of the item into every group, or into none, and blocks while one of them is full. The groups must be in the
// order of their numbers.
func (t *Transport) enqueue(ctx context.Context, groups []*group, it item, class int) error {
	lock(groups)
	_, full, err := refusal(groups, &it, class, newcomer)
	if err == nil && full == nil {
		insert(groups, &it)
	}
	unlock(groups)
	if err != nil || full == nil {
		return err
	}
	return t.enqueueBlocked(ctx, groups, it, class)
}

// enqueueBlocked does what enqueue does, for a publisher that has found a full capacity.
func (t *Transport) enqueueBlocked(ctx context.Context, groups []*group, it item, class int) error {
	p := &publisher{it: it, class: class, ticket: t.tickets.Add(1), woken: make(chan struct{}, 1)}
	for {
		lock(groups)
		g, full, err := refusal(groups, &p.it, class, p.ticket)
		if err != nil || full == nil {
			if err == nil {
				insert(groups, &p.it)
			}
			p.leave()
			unlock(groups)
			return err
		}
		var notice []any
		if p.join(g, full) {
			notice = g.blockedNotice(full)
		}
		unlock(groups)
		if notice != nil {
			t.cfg.Logger.Warn("leat: publishers blocked by a full group", notice...)
		}
		select {
		case <-p.woken:
		case <-ctx.Done():
			return p.giveUp(context.Cause(ctx))
		}
	}
}

func (p *publisher) giveUp(cause error) error {
	g, a := p.group, p.capacity
	g.mu.Lock()
	defer g.mu.Unlock()
	p.leave()
	return fmt.Errorf("group %q is full (%d messages, %d bytes %s): %w", g.name, a.count, a.bytes, a.what, cause)
}

// blockedNotice returns the attributes of the log line about a full capacity, nil if it was logged a short time ago. The caller
// has locked the group, and logs after it has unlocked it, because a logger may block.
func (g *group) blockedNotice(a *capacity) []any {
	now := time.Now()
	if !a.warned.IsZero() && now.Sub(a.warned) < blockedNotice {
		return nil
	}
	a.warned = now
	return []any{
		"group", g.name, "full_of", a.what, "messages", a.count, "bytes", a.bytes,
		"in_flight", g.out, "delayed", g.delayed.Len(), "behind_their_key", g.keys.unparked(),
	}
}

// refusal returns the first capacity that does not admit the item, nil if all do.
func refusal(groups []*group, it *item, class int, ticket uint64) (*group, *capacity, error) {
	for _, g := range groups {
		if g.closed {
			return nil, nil, driver.ErrClosed
		}
	}
	for _, g := range groups {
		if a := g.capacityFor(it); !a.admits(it.size, class, ticket) {
			return g, a, nil
		}
	}
	return nil, nil, nil
}

// insert puts a copy of the item into every group.
func insert(groups []*group, it *item) {
	for _, g := range groups {
		own := *it
		g.capacityFor(it).acquire(&own)
		g.countUnsettled(1)
		g.insert(&own)
	}
}

// lock locks groups for refusal and insert. They must be in the order of their numbers. All callers lock in this order, so there is no deadlock.
func lock(groups []*group) {
	for _, g := range groups {
		g.mu.Lock()
	}
}

func unlock(groups []*group) {
	for _, g := range groups {
		g.mu.Unlock()
	}
}

// inOrder returns the groups in the order of their numbers, without changing the slice.
func inOrder(groups []*group) []*group {
	byNumber := func(a, b *group) int { return a.number - b.number }
	if slices.IsSortedFunc(groups, byNumber) {
		return groups
	}
	groups = slices.Clone(groups)
	slices.SortFunc(groups, byNumber)
	return groups
}
