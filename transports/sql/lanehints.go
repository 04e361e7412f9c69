package sql

import (
	"container/heap"
	"math"
	"sync"
	"time"
)

// A claim from the lanes of a group walks from lane to lane. Thousands of them may wait for a redelivery, so
// that a walk over all takes seconds. laneHints say where a feed's next claim may find something all the
// same: in lanes of which the feed has settled a message, and at messages that are due by now. They are only
// hints: a claim checks what it takes, and the walk finds what no hint names.
type laneHints struct {
	mu      sync.Mutex
	settled map[int64]struct{} // lanes
	waiting waitingHeads
	dueAt   map[int64]time.Time // of the messages in waiting
}

const (
	// maxSettledLanes and maxWaitingHeads bound the memory that hints take.
	maxSettledLanes = 4096
	maxWaitingHeads = 1 << 18
	// hintsAtOnce is how many hints of a kind one claim follows.
	hintsAtOnce = 128
)

// waitingHead is the first message of a lane, which waits for its redelivery.
type waitingHead struct {
	id int64
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

// settle notes that a lane may have a message that can be taken.
func (l *laneHints) settle(lane int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settled == nil {
		l.settled = make(map[int64]struct{})
	}
	if len(l.settled) < maxSettledLanes {
		l.settled[lane] = struct{}{}
	}
}

// wait notes that a message can be taken at that time.
func (l *laneHints) wait(id int64, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dueAt == nil {
		l.dueAt = make(map[int64]time.Time)
	}
	known, there := l.dueAt[id]
	if there && !at.Before(known) && at.Sub(known) < time.Second || len(l.waiting) >= maxWaitingHeads {
		return
	}
	l.dueAt[id] = at
	heap.Push(&l.waiting, waitingHead{id, at})
}

// take removes the hints that the next claim follows.
func (l *laneHints) take(now time.Time) (lanes, due []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for lane := range l.settled {
		if len(lanes) == hintsAtOnce {
			break
		}
		lanes = append(lanes, lane)
		delete(l.settled, lane)
	}
	for len(due) < hintsAtOnce && len(l.waiting) > 0 && !l.waiting[0].at.After(now) {
		head := heap.Pop(&l.waiting).(waitingHead) //nolint:forcetypeassert // nothing else is in it
		if at, there := l.dueAt[head.id]; there && at.Equal(head.at) {
			delete(l.dueAt, head.id)
			due = append(due, head.id)
		}
	}
	return lanes, due
}

// restore puts hints back that a claim took and did not follow.
func (l *laneHints) restore(lanes, due []int64) {
	for _, lane := range lanes {
		l.settle(lane)
	}
	for _, id := range due {
		l.wait(id, time.Now())
	}
}

// next returns when the next message is due, zero if none waits.
func (l *laneHints) next() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return time.Time{}
	}
	return l.waiting[0].at
}

// left reports whether there are lanes that a claim has not looked at yet.
func (l *laneHints) left() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.settled) > 0
}

// laneWalk is how far the walk over a group's lanes has come. The walks of some claims make a round, so that
// every lane gets its turn.
type laneWalk struct {
	after   int64 // the walk goes on behind this lane
	start   int64 // the round began behind this one
	wrapped bool  // the round has come to the last lane and gone on from the first
}

// noLane is before every lane.
const noLane = math.MinInt64

func newLaneWalk() laneWalk { return laneWalk{after: noLane, start: noLane} }

// step goes on to a lane, or to the end of all, and reports whether that completes the round.
func (w *laneWalk) step(last int64, end bool) (round bool) {
	switch {
	case !end:
		w.after = last
		round = w.wrapped && last >= w.start
	case w.wrapped || w.start == noLane:
		w.after, round = noLane, true
	default:
		w.after, w.wrapped = noLane, true
	}
	if round {
		w.start, w.wrapped = w.after, false
	}
	return round
}
