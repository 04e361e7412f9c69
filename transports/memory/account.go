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

// A group's messages are counted in three accounts with bounds of their own. A message is charged to one
// of them from its publishing until it is settled:
//
//   - waiting: what waits to be handled, is in a handler, or waits for its next try
//   - delayed: what was published with a delay, also when its time has come
//   - parked: what waits behind a poisoned message of its key, also when the key was released. A message
//     that begins to be parked later is moved here if it fits; else it stays where it was charged.
//
// Nothing else moves between the accounts, so their sum is bounded whatever handlers do. A full account
// holds back only the publishers whose messages it would be charged with.
const (
	waitingAccount = iota
	delayedAccount
	parkedAccount
	accounts
)

// account is guarded by the mutex of its queue.
type account struct {
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

// handlerOverdraft is how many times its bounds an account takes from publishing handlers.
const handlerOverdraft = 8

// blockedNotice is how often the log says at most that publishers of an account are blocked.
const blockedNotice = time.Minute

func overdraft(class int) int {
	if class == handlerClass {
		return handlerOverdraft
	}
	return 1
}

// fits reports whether so many more messages of so many bytes are within the bounds. One message always
// fits into an empty account.
func (a *account) fits(count, bytes, overdraft int) bool {
	return (a.limit == 0 || a.count+count <= a.limit*overdraft) &&
		(a.bytes+bytes <= a.bound*overdraft || a.count == 0 && count == 1)
}

// admits reports whether a message may be charged now: it fits, and no publisher is blocked whose turn
// comes before.
func (a *account) admits(size, class int, ticket uint64) bool {
	for c := range class + 1 {
		if first := a.blocked[c].Front(); first != nil && (c < class || first.Value.(*publisher).ticket < ticket) {
			return false
		}
	}
	return a.fits(1, size, overdraft(class))
}

func (a *account) charge(it *item) {
	it.account = a
	a.count++
	a.bytes += it.size
}

// release takes a message off the account and lets the next publishers try.
func (a *account) release(it *item) {
	a.count--
	a.bytes -= it.size
	a.wake()
}

// wake lets those publishers try again that fit, in their turn. They stay in the list until they are
// admitted, or find another account full, or give up; each of these calls wake again.
func (a *account) wake() {
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

// wakeAll makes all publishers look again for the account they need.
func (a *account) wakeAll() {
	for class := range a.blocked {
		for el := a.blocked[class].Front(); el != nil; el = el.Next() {
			el.Value.(*publisher).tryAgain()
		}
	}
}

// publisher is a call that is blocked by a full account. It holds nothing while it waits: neither a lock nor
// room in the other groups that want its message. When it is woken it tries again from the start.
type publisher struct {
	it     item
	class  int
	ticket uint64 // its age; a lower one is older

	queue   *queue // where it waits; nil while it does not
	account *account
	place   *list.Element
	woken   chan struct{} // has room for one token
}

func (p *publisher) tryAgain() {
	select {
	case p.woken <- struct{}{}:
	default: // it has not looked yet
	}
}

// join makes the publisher wait for an account, and reports whether it did not before. Older ones go before,
// so that one who needs room in several groups gets on. The caller holds q.mu.
func (p *publisher) join(q *queue, a *account) bool {
	if p.account == a {
		return false
	}
	p.leave()
	p.queue, p.account = q, a
	blocked := &a.blocked[p.class]
	older := blocked.Back()
	for older != nil && older.Value.(*publisher).ticket > p.ticket {
		older = older.Prev()
	}
	if older == nil {
		p.place = blocked.PushFront(p)
	} else {
		p.place = blocked.InsertAfter(p, older)
	}
	return true
}

// leave passes the turn on. The caller holds p.queue.mu.
func (p *publisher) leave() {
	a := p.account
	if a == nil {
		return
	}
	a.blocked[p.class].Remove(p.place)
	p.queue, p.account, p.place = nil, nil, nil
	a.wake()
}

// newcomer is the ticket of a publisher that has not waited yet.
const newcomer = math.MaxUint64

// enqueue puts a copy of the item into every queue, or into none, and blocks while one of them has no room.
// The queues are in the order of their numbers.
func (t *Transport) enqueue(ctx context.Context, queues []*queue, it item, class int) error {
	lock(queues)
	_, full, err := refusal(queues, &it, class, newcomer)
	if err == nil && full == nil {
		insert(queues, &it)
	}
	unlock(queues)
	if err != nil || full == nil {
		return err
	}
	return t.enqueueBlocked(ctx, queues, it, class)
}

// enqueueBlocked is enqueue for a publisher that has found a full account.
func (t *Transport) enqueueBlocked(ctx context.Context, queues []*queue, it item, class int) error {
	p := &publisher{it: it, class: class, ticket: t.tickets.Add(1), woken: make(chan struct{}, 1)}
	for {
		lock(queues)
		q, full, err := refusal(queues, &p.it, class, p.ticket)
		if err != nil || full == nil {
			if err == nil {
				insert(queues, &p.it)
			}
			p.leave()
			unlock(queues)
			return err
		}
		var notice []any
		if p.join(q, full) {
			notice = q.blockedNotice(full)
		}
		unlock(queues)
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
	q, a := p.queue, p.account
	q.mu.Lock()
	defer q.mu.Unlock()
	p.leave()
	return fmt.Errorf("group %q is full (%d messages, %d bytes %s): %w", q.group, a.count, a.bytes, a.what, cause)
}

// blockedNotice is what the log says of a full account, nil if it has said so a short time ago. The caller
// holds q.mu, and logs without it, as a logger may block.
func (q *queue) blockedNotice(a *account) []any {
	now := time.Now()
	if !a.warned.IsZero() && now.Sub(a.warned) < blockedNotice {
		return nil
	}
	a.warned = now
	behind := 0
	for _, l := range q.lanes {
		behind += l.behind()
	}
	return []any{
		"group", q.group, "full_of", a.what, "messages", a.count, "bytes", a.bytes,
		"in_flight", q.out, "delayed", len(q.later), "behind_their_key", behind,
	}
}

// refusal returns the first account that has no room, nil if all have. The caller holds the locks.
func refusal(queues []*queue, it *item, class int, ticket uint64) (*queue, *account, error) {
	for _, q := range queues {
		if q.closed {
			return nil, nil, driver.ErrClosed
		}
	}
	for _, q := range queues {
		if a := q.accountOf(it); !a.admits(it.size, class, ticket) {
			return q, a, nil
		}
	}
	return nil, nil, nil
}

// insert gives every queue an item of its own. The caller holds the locks.
func insert(queues []*queue, it *item) {
	for _, q := range queues {
		own := *it
		q.accountOf(it).charge(&own)
		q.unsettled(1)
		q.insert(&own)
	}
}

// accountOf is what the item would be charged to. The caller holds q.mu.
func (q *queue) accountOf(it *item) *account {
	if it.delayed {
		return &q.accounts[delayedAccount]
	}
	if l := q.lanes[q.orderKey(it.msg)]; l != nil && len(l.holds) > 0 && (it.place == 0 || l.holdsBack(it)) {
		return &q.accounts[parkedAccount]
	}
	return &q.accounts[waitingAccount]
}

// lock locks queues that are in the order of their numbers, in which all lock them.
func lock(queues []*queue) {
	for _, q := range queues {
		q.mu.Lock()
	}
}

func unlock(queues []*queue) {
	for _, q := range queues {
		q.mu.Unlock()
	}
}

// inOrder returns the queues in the order of their numbers, without changing the slice.
func inOrder(queues []*queue) []*queue {
	byNumber := func(a, b *queue) int { return a.number - b.number }
	if slices.IsSortedFunc(queues, byNumber) {
		return queues
	}
	queues = slices.Clone(queues)
	slices.SortFunc(queues, byNumber)
	return queues
}
