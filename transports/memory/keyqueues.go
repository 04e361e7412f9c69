package memory

import (
	"iter"
	"slices"

	"github.com/leatbus/leat/transports/internal/ring"
)

// keyQueues keeps the order of messages within their keys. A key has at most one head: a message that is ready, handed
// out or delayed. The later messages of the key wait behind it in the order of their seq. Poisoned messages hold back what
// is behind them: it is parked.
//
// The group's mutex guards it.
type keyQueues struct {
	byKey     map[string]*keyQueue
	ready     func(*item)       // is called with a message that becomes the head of its key
	setParked func(*item, bool) // is called with a message that begins or ceases to be parked
	parked    int               // messages that are parked
}

// keyQueue is one key. It exists as long as the key has a head, a message waits, or a poisoned one holds the key back.
type keyQueue struct {
	headed  bool
	waiting ring.Ring[*item] // by seq; what is parked is at the end
	holds   []int            // the seqs of poisoned messages, ascending
}

func (q *keyQueue) holdsBack(seq int) bool { return len(q.holds) > 0 && seq > q.holds[0] }

// firstBehind returns the index of the first message that waits and has a higher seq.
func (q *keyQueue) firstBehind(seq int) int {
	low, high := 0, q.waiting.Len()
	for low < high {
		if middle := (low + high) / 2; q.waiting.Get(middle).seq > seq {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low
}

// unparked returns how many messages wait for the head, and not for an operator.
func (q *keyQueue) unparked() int {
	if len(q.holds) == 0 {
		return q.waiting.Len()
	}
	return q.firstBehind(q.holds[0])
}

func (k *keyQueues) init(ready func(*item), setParked func(*item, bool)) {
	k.byKey, k.ready, k.setParked = make(map[string]*keyQueue), ready, setParked
}

func (k *keyQueues) queue(key string) *keyQueue {
	q, ok := k.byKey[key]
	if !ok {
		q = new(keyQueue)
		k.byKey[key] = q
	}
	return q
}

// enter reports whether the message is the head of its key now. If not, it waits.
func (k *keyQueues) enter(it *item) bool {
	q := k.queue(it.key)
	if !q.headed && q.waiting.Len() == 0 && !q.holdsBack(it.seq) {
		q.headed, it.head = true, true
		return true
	}
	q.waiting.PushBack(it)
	for i := q.waiting.Len() - 1; i > 0 && q.waiting.Get(i-1).seq > it.seq; i-- {
		q.waiting.Swap(i-1, i) // it is replayed, or was delayed
	}
	if q.holdsBack(it.seq) {
		k.mark(it, true)
	}
	k.advance(it.key, q)
	return false
}

// done lets the next message of a key go, as its head is settled.
func (k *keyQueues) done(key string) {
	q := k.byKey[key]
	q.headed = false
	k.advance(key, q)
}

// advance makes the first message of a key that has no head its head, unless it is held back.
func (k *keyQueues) advance(key string, q *keyQueue) {
	first, ok := q.waiting.Front()
	switch {
	case q.headed:
	case ok && !q.holdsBack(first.seq):
		q.waiting.PopFront()
		q.headed, first.head = true, true
		k.ready(first)
	case !ok && len(q.holds) == 0:
		delete(k.byKey, key)
	}
}

// hold parks what is behind seq, the place of a poisoned message.
func (k *keyQueues) hold(key string, seq int) {
	q := k.queue(key) // it is new for a message that an operator has added
	i, _ := slices.BinarySearch(q.holds, seq)
	q.holds = slices.Insert(q.holds, i, seq)
	for i := q.firstBehind(q.holds[0]); i < q.waiting.Len(); i++ {
		k.mark(q.waiting.Get(i), true)
	}
}

// release undoes hold, and lets the key go on as far as its next poisoned message. It reports whether the key was held
// there.
func (k *keyQueues) release(key string, seq int) bool {
	q := k.byKey[key]
	if q == nil {
		return false
	}
	i, held := slices.BinarySearch(q.holds, seq)
	if !held {
		return false
	}
	q.holds = slices.Delete(q.holds, i, i+1)
	k.unpark(key, q)
	return true
}

// releaseAll undoes every hold, and reports whether there was one.
func (k *keyQueues) releaseAll() (held bool) {
	for key, q := range k.byKey {
		if len(q.holds) > 0 {
			q.holds, held = nil, true
			k.unpark(key, q)
		}
	}
	return held
}

// unpark makes messages wait again that are not held back any more, and lets the key go on.
func (k *keyQueues) unpark(key string, q *keyQueue) {
	for i := range q.unparked() {
		k.mark(q.waiting.Get(i), false)
	}
	k.advance(key, q)
}

func (k *keyQueues) mark(it *item, parked bool) {
	if it.parked == parked {
		return
	}
	k.setParked(it, parked)
	switch {
	case it.parked != parked: // the group is closed
	case parked:
		k.parked++
	default:
		k.parked--
	}
}

// heldBack returns how many keys a poisoned message holds back.
func (k *keyQueues) heldBack() (n int) {
	for _, q := range k.byKey {
		if len(q.holds) > 0 {
			n++
		}
	}
	return n
}

// parks reports whether a message of the key would be parked. A seq of 0 is that of a message that is new.
func (k *keyQueues) parks(key string, seq int) bool {
	q := k.byKey[key]
	return q != nil && len(q.holds) > 0 && (seq == 0 || q.holdsBack(seq))
}

// behind returns how many messages wait behind a poisoned one of the key, and before the next one.
func (k *keyQueues) behind(key string, seq int) int {
	q := k.byKey[key]
	if q == nil || key == "" {
		return 0
	}
	i, held := slices.BinarySearch(q.holds, seq)
	switch {
	case !held:
		return 0
	case i+1 < len(q.holds):
		return q.firstBehind(q.holds[i+1]) - q.firstBehind(seq)
	default:
		return q.waiting.Len() - q.firstBehind(seq)
	}
}

// behindDelayed returns how many messages wait behind heads that are delayed.
func (k *keyQueues) behindDelayed(delayed iter.Seq[*item]) (n int) {
	for it := range delayed {
		if q := k.byKey[it.key]; it.head && q != nil {
			n += q.unparked()
		}
	}
	return n
}

// unparked returns how many messages wait behind the head of their key.
func (k *keyQueues) unparked() (n int) {
	for _, q := range k.byKey {
		n += q.unparked()
	}
	return n
}
