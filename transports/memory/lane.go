package memory

import "slices"

// lane is one key of an ordered group. It is there as long as the key has a head, something waits, or
// a poisoned message holds it back.
type lane struct {
	headed  bool        // a message of the key is ready, handed out or waits for its redelivery
	waiting ring[*item] // behind it, by place
	holds   []int       // the places of poisoned messages; what is behind the first is held back
}

func (l *lane) holdsBack(it *item) bool { return len(l.holds) > 0 && it.place > l.holds[0] }

// behind is how many messages wait that have a place in the group.
func (l *lane) behind() (n int) {
	for i := range l.waiting.len() {
		if !l.waiting.get(i).parked {
			n++
		}
	}
	return n
}

// lead makes a message the head of its lane if it may go now; else it waits there. The caller holds
// q.mu.
func (q *queue) lead(it *item) bool {
	l, ok := q.lanes[it.key]
	if !ok {
		l = new(lane)
		q.lanes[it.key] = l
	}
	if !l.headed && l.waiting.len() == 0 && !l.holdsBack(it) {
		l.headed, it.heads = true, true
		return true
	}
	l.waiting.pushBack(it)
	for i := l.waiting.len() - 1; i > 0 && l.waiting.get(i-1).place > it.place; i-- {
		l.waiting.swap(i-1, i) // it is replayed, or was delayed
	}
	if l.holdsBack(it) {
		q.parkOne(it)
	}
	q.advance(it.key, l)
	return false
}

// advance lets the first of a lane go that has no head, unless it is held back. The caller holds q.mu.
func (q *queue) advance(key string, l *lane) {
	first, ok := l.waiting.front()
	switch {
	case l.headed:
	case ok && !l.holdsBack(first):
		l.waiting.popFront()
		l.headed, first.heads = true, true
		q.enter(first)
	case !ok && len(l.holds) == 0:
		delete(q.lanes, key)
	}
}

// holdBack parks what is behind a place of a key. The caller holds q.mu.
func (q *queue) holdBack(key string, place int) {
	l, ok := q.lanes[key]
	if !ok { // a message that an operator has added
		l = new(lane)
		q.lanes[key] = l
	}
	i, _ := slices.BinarySearch(l.holds, place)
	l.holds = slices.Insert(l.holds, i, place)
	for i := range l.waiting.len() {
		if it := l.waiting.get(i); l.holdsBack(it) {
			q.parkOne(it)
		}
	}
	q.reconsider()
}

// reconsider makes blocked publishers look again, as messages of a key belong into another account now. The
// caller holds q.mu.
func (q *queue) reconsider() {
	q.accounts[waitingAccount].wakeAll()
	q.accounts[parkedAccount].wakeAll()
}

// letGo undoes holdBack. The caller holds q.mu.
func (q *queue) letGo(key string, place int) {
	l := q.lanes[key]
	if l == nil {
		return
	}
	i, held := slices.BinarySearch(l.holds, place)
	if !held {
		return
	}
	l.holds = slices.Delete(l.holds, i, i+1)
	q.unpark(key, l)
}

// letAllGo lets every key go. The caller holds q.mu.
func (q *queue) letAllGo() {
	for key, l := range q.lanes {
		if len(l.holds) > 0 {
			l.holds = nil
			q.unpark(key, l)
		}
	}
}

// parkOne marks a message that is held back: it waits for an operator, and nobody waits for that. The
// caller holds q.mu.
func (q *queue) parkOne(it *item) {
	if it.parked || q.closed {
		return
	}
	it.parked = true
	q.unsettled(-1)
	if !it.told {
		it.told = true
		for _, tell := range q.watchers {
			tell(it.msg)
		}
	}
	parked := &q.accounts[parkedAccount]
	if was := it.account; was != parked && parked.fits(1, it.size, 1) {
		parked.charge(it)
		was.release(it)
	}
}

// unpark makes messages wait again that are not held back any more, and lets the key go on. The caller
// holds q.mu.
func (q *queue) unpark(key string, l *lane) {
	for i := range l.waiting.len() {
		it := l.waiting.get(i)
		if l.holdsBack(it) {
			break
		}
		if it.parked && !q.closed {
			it.parked = false
			q.unsettled(1)
		}
	}
	q.advance(key, l)
	q.reconsider()
}

// countParked is how many messages are parked. The caller holds q.mu.
func (q *queue) countParked() (n int) {
	for _, l := range q.lanes {
		if len(l.holds) > 0 {
			n += l.waiting.len() - l.behind()
		}
	}
	return n
}

// parkedBehind is how many messages wait behind a poisoned one. The caller holds q.mu.
func (q *queue) parkedBehind(x *poisoned) (n int) {
	l := q.lanes[x.holds]
	if l == nil || x.holds == "" {
		return 0
	}
	next, held := slices.BinarySearch(l.holds, x.place)
	if !held {
		return 0
	}
	for i := range l.waiting.len() {
		place := l.waiting.get(i).place
		if place > x.place && (next+1 == len(l.holds) || place < l.holds[next+1]) {
			n++
		}
	}
	return n
}
