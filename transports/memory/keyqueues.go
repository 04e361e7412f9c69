package memory

import (
	"iter"
	"slices"

	"github.com/leatbus/leat/transports/internal/ring"
)

// keyQueues keeps the order of messages by key. A key has at most one head, which is ready, delivered or delayed. The later
// messages of the key wait behind it in the order of their seq. Messages behind a poisoned one are parked.
//
// The group's mutex guards it.
type keyQueues struct {
	byKey     map[string]*keyQueue
	ready     func(*item)       // called when a message becomes the head of its key
	setParked func(*item, bool) // called when a message begins or ceases to be parked
	parked    int               // number of parked messages
}

// keyQueue is the queue of one key. It exists while the key has a head, waiting messages or holds.
type keyQueue struct {
	headed  bool             // has a head
	waiting ring.Ring[*item] // by seq; parked messages are at the end
	holds   []int            // the seqs of poisoned messages, ascending
}

func (q *keyQueue) holdsBack(seq int) bool { return len(q.holds) > 0 && seq > q.holds[0] }

// firstBehind returns the index of the first waiting message with a higher seq.
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

// unparked returns how many waiting messages are not parked.
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

// enter adds a message to its key. It reports whether the message is now the head; otherwise it waits.
func (k *keyQueues) enter(it *item) bool {
	q := k.queue(it.key)
	if !q.headed && q.waiting.Len() == 0 && !q.holdsBack(it.seq) {
		q.headed, it.head = true, true
		return true
	}
	q.waiting.PushBack(it)
	for i := q.waiting.Len() - 1; i > 0 && q.waiting.Get(i-1).seq > it.seq; i-- {
		q.waiting.Swap(i-1, i) // a message that is replayed or was delayed
	}
	if q.holdsBack(it.seq) {
		k.mark(it, true)
	}
	k.advance(it.key, q)
	return false
}

// done removes the head of a key, which is settled, and makes the next message the head.
func (k *keyQueues) done(key string) {
	q := k.byKey[key]
	q.headed = false
	k.advance(key, q)
}

// advance makes the first waiting message of a key the head, if the key has none and the message is not parked. It deletes the
// queue if nothing is left in it.
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

// hold parks the messages behind seq, which is that of a poisoned message.
func (k *keyQueues) hold(key string, seq int) {
	q := k.queue(key) // may be new, if an operator has added the poisoned message
	i, _ := slices.BinarySearch(q.holds, seq)
	q.holds = slices.Insert(q.holds, i, seq)
	for i := q.firstBehind(q.holds[0]); i < q.waiting.Len(); i++ {
		k.mark(q.waiting.Get(i), true)
	}
}

// release removes a hold. Messages up to the next hold are not parked any more. It reports whether there was such a hold.
func (k *keyQueues) release(key string, seq int) bool {
	q := k.byKey[key]
	if q == nil {
		return false
	}
	i, found := slices.BinarySearch(q.holds, seq)
	if !found {
		return false
	}
	q.holds = slices.Delete(q.holds, i, i+1)
	k.unpark(key, q)
	return true
}

// releaseAll removes all holds, and reports whether there was one.
func (k *keyQueues) releaseAll() (released bool) {
	for key, q := range k.byKey {
		if len(q.holds) > 0 {
			q.holds, released = nil, true
			k.unpark(key, q)
		}
	}
	return released
}

// unpark marks the messages that are not held back any more as not parked, and advances the key.
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
	case it.parked != parked: // setParked did nothing, because the group is closed
	case parked:
		k.parked++
	default:
		k.parked--
	}
}

// heldBack returns the number of keys with a hold.
func (k *keyQueues) heldBack() (n int) {
	for _, q := range k.byKey {
		if len(q.holds) > 0 {
			n++
		}
	}
	return n
}

// parks reports whether a message of the key would be parked. A seq of 0 stands for a new message.
func (k *keyQueues) parks(key string, seq int) bool {
	q := k.byKey[key]
	return q != nil && len(q.holds) > 0 && (seq == 0 || q.holdsBack(seq))
}

// behind returns how many messages are parked between a poisoned one of the key and the next poisoned one.
func (k *keyQueues) behind(key string, seq int) int {
	q := k.byKey[key]
	if q == nil || key == "" {
		return 0
	}
	i, found := slices.BinarySearch(q.holds, seq)
	switch {
	case !found:
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

// unparked returns how many messages wait behind the head of their key and are not parked.
func (k *keyQueues) unparked() (n int) {
	for _, q := range k.byKey {
		n += q.unparked()
	}
	return n
}
