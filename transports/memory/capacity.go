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

// A group has three capacities with bounds of their own: weighted semaphores of messages and bytes. A message acquires one
// of them when it is published and releases it when it is settled:
//
//   - waiting: what waits to be handled, is in a handler, or waits for its next try
//   - delayed: what was published with a delay, also when its time has come
//   - parked: what waits behind a poisoned message of its key, also when the key was released. A message
//     that begins to be parked later moves here if it fits; else it keeps what it has acquired.
//
// Nothing else moves between the capacities, so their sum is bounded whatever handlers do. A full one blocks only the
// publishers whose messages would acquire it.
const (
	waitingCapacity = iota
	delayedCapacity
	parkedCapacity
	capacities
)

// capacity is one of them. The group's mutex guards it.
type capacity struct {
	what   string // for people
	limit  int    // messages; 0 means any number
	bound  int    // bytes
	count  int
	bytes  int
	warned time.Time

	// blocked are the publishers that wait for room, by class and then by age. The first of them is the
	// one whose turn it is: nobody passes it.
	blocked [classes]list.List
}

// Handlers go before other publishers.
const (
	handlerClass = iota
	otherClass
	classes
)

// handlerOverdraft is how many times its bounds a capacity takes from publishing handlers.
const handlerOverdraft = 8

// blockedNotice is how often the log says at most that a capacity blocks publishers.
const blockedNotice = time.Minute

func overdraft(class int) int {
	if class == handlerClass {
		return handlerOverdraft
	}
	return 1
}

// fits reports whether so many more messages of so many bytes are within the bounds. One message always
// fits into an empty capacity.
func (a *capacity) fits(count, bytes, overdraft int) bool {
	return (a.limit == 0 || a.count+count <= a.limit*overdraft) &&
		(a.bytes+bytes <= a.bound*overdraft || a.count == 0 && count == 1)
}

// admits reports whether a message may acquire the capacity now: it fits, and no publisher is blocked whose turn
// comes before.
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

// release gives back what a message has acquired, and lets the next publishers try.
func (a *capacity) release(it *item) {
	a.count--
	a.bytes -= it.size
	a.wake()
}

// wake lets those publishers try again that fit, in their turn. They stay in the list until they are
// admitted, or find another capacity full, or give up; each of these calls wake again.
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

// wakeAll makes all publishers look again for the capacity they need.
func (a *capacity) wakeAll() {
	for class := range a.blocked {
		for el := a.blocked[class].Front(); el != nil; el = el.Next() {
			el.Value.(*publisher).tryAgain()
		}
	}
}

// publisher is a call that is blocked by a full capacity. It holds nothing while it waits: neither a lock nor
// room in the other groups that want its message. When it is woken it tries again from the start.
type publisher struct {
	it     item
	class  int
	ticket uint64 // its age; a lower one is older

	group    *group // where it waits; nil while it does not
	capacity *capacity
	element  *list.Element
	woken    chan struct{} // has room for one token
}

func (p *publisher) tryAgain() {
	select {
	case p.woken <- struct{}{}:
	default: // it has not looked yet
	}
}

// join makes the publisher wait for a capacity, and reports whether it did not before. Older ones go before,
// so that one who needs room in several groups gets on. The caller has locked the group.
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

// leave passes the turn on. The caller has locked p.group.
func (p *publisher) leave() {
	a := p.capacity
	if a == nil {
		return
	}
	a.blocked[p.class].Remove(p.element)
	p.group, p.capacity, p.element = nil, nil, nil
	a.wake()
}

// newcomer is the ticket of a publisher that has not waited yet.
const newcomer = math.MaxUint64

// enqueue puts a copy of the item into every group, or into none, and blocks while one of them has no room.
// The groups are in the order of their numbers.
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

// enqueueBlocked is enqueue for a publisher that has found a full capacity.
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

// blockedNotice returns what the log says of a full capacity, nil if it has said so a short time ago. The caller has
// locked the group, and logs without the lock, as a logger may block.
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

// refusal returns the first capacity that has no room, nil if all have. The groups are locked.
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

// insert gives every group an item of its own. The groups are locked.
func insert(groups []*group, it *item) {
	for _, g := range groups {
		own := *it
		g.capacityFor(it).acquire(&own)
		g.countUnsettled(1)
		g.insert(&own)
	}
}

// lock locks groups that are in the order of their numbers, in which all lock them.
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
