package queue

import (
	"container/heap"
	"math"
	"sync"
	"time"
)

// A claim from the key queues of a group walks from one queue to the next. If thousands of them wait for a redelivery, a walk over
// all takes seconds. So keyHints record where the receiver's next claim may find messages: in key queues of which it has settled a
// message, and in those with messages that are due. They are only hints: a claim checks what it claims, and the walk finds
// messages without hints.
type keyHints struct {
	mu      sync.Mutex
	settled map[int64]struct{} // key queues
	waiting waitingHeads
	dueAt   map[int64]time.Time // of the messages in waiting
}

const (
	// maxSettledKeys and maxWaitingHeads bound the memory that hints take.
	maxSettledKeys  = 4096
	maxWaitingHeads = 1 << 18
	// hintsAtOnce is how many hints of a kind one claim follows.
	hintsAtOnce = 128
)

// waitingHead is the first message of a key queue, which waits for its redelivery.
type waitingHead struct {
	keyHead
	at time.Time
}

// waitingHeads is a heap by the time at which they are due.
type waitingHeads []waitingHead

func (h waitingHeads) Len() int           { return len(h) }
func (h waitingHeads) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h waitingHeads) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *waitingHeads) Push(x any)        { *h = append(*h, x.(waitingHead)) } //nolint:forcetypeassert // heap.Push gets nothing else

func (h *waitingHeads) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// settle records that a key queue may have a message that can be claimed.
func (l *keyHints) settle(queue int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settled == nil {
		l.settled = make(map[int64]struct{})
	}
	if len(l.settled) < maxSettledKeys {
		l.settled[queue] = struct{}{}
	}
}

// wait records when a message can be claimed.
func (l *keyHints) wait(h keyHead, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dueAt == nil {
		l.dueAt = make(map[int64]time.Time)
	}
	known, there := l.dueAt[h.id]
	if there && !at.Before(known) && at.Sub(known) < time.Second || len(l.waiting) >= maxWaitingHeads {
		return
	}
	l.dueAt[h.id] = at
	heap.Push(&l.waiting, waitingHead{h, at})
}

// take removes and returns the hints for the next claim.
func (l *keyHints) take(now time.Time) (queues []int64, due []keyHead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for queue := range l.settled {
		if len(queues) == hintsAtOnce {
			break
		}
		queues = append(queues, queue)
		delete(l.settled, queue)
	}
	for len(due) < hintsAtOnce && len(l.waiting) > 0 && !l.waiting[0].at.After(now) {
		head := heap.Pop(&l.waiting).(waitingHead) //nolint:forcetypeassert // nothing else is in it
		if at, there := l.dueAt[head.id]; there && at.Equal(head.at) {
			delete(l.dueAt, head.id)
			due = append(due, head.keyHead)
		}
	}
	return queues, due
}

// restore adds hints again that a claim did not follow.
func (l *keyHints) restore(queues []int64, due []keyHead) {
	for _, queue := range queues {
		l.settle(queue)
	}
	for _, h := range due {
		l.wait(h, time.Now())
	}
}

// next returns when the next message is due, zero if none waits.
func (l *keyHints) next() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return time.Time{}
	}
	return l.waiting[0].at
}

// left reports whether there are key queues that no claim has examined yet.
func (l *keyHints) left() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.settled) > 0
}

// keyWalk is the position of the walk over a group's key queues. Several claims complete a round over all of them.
type keyWalk struct {
	after   int64 // the walk goes on behind this key queue
	start   int64 // the round began behind this one
	wrapped bool  // the round has come to the last key queue and gone on from the first
}

// noKeyQueue is before every key queue.
const noKeyQueue = math.MinInt64

func newKeyWalk() keyWalk { return keyWalk{after: noKeyQueue, start: noKeyQueue} }

// step moves to a key queue, or to the end of all, and reports whether that completes the round.
func (w *keyWalk) step(last int64, end bool) (round bool) {
	switch {
	case !end:
		w.after = last
		round = w.wrapped && last >= w.start
	case w.wrapped || w.start == noKeyQueue:
		w.after, round = noKeyQueue, true
	default:
		w.after, w.wrapped = noKeyQueue, true
	}
	if round {
		w.start, w.wrapped = w.after, false
	}
	return round
}
