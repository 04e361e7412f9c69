package memory

import (
	"container/heap"
	"time"
)

// hold keeps a message for later.
func (q *queue) hold(it *item) {
	heap.Push(&q.later, it)
	if q.later[0] == it {
		q.arm()
	}
}

// arm sets the timer to the earliest message that waits for its time.
func (q *queue) arm() {
	if q.timer != nil {
		q.timer.Stop()
	}
	if len(q.later) > 0 && !q.closed {
		q.timer = time.AfterFunc(time.Until(q.later[0].due), q.promote)
	}
}

// promote makes ready whose time has come.
func (q *queue) promote() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	for len(q.later) > 0 && time.Until(q.later[0].due) <= 0 {
		q.enter(heap.Pop(&q.later).(*item))
	}
	q.arm()
}

// laterHeap orders messages by the time they wait for.
type laterHeap []*item

func (h laterHeap) Len() int           { return len(h) }
func (h laterHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laterHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *laterHeap) Push(x any)        { *h = append(*h, x.(*item)) }
func (h *laterHeap) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return it
}
