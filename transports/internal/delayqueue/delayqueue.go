// Package delayqueue provides a queue that releases items when they are due.
package delayqueue

import (
	"container/heap"
	"iter"
	"sync"
	"time"
)

// A Queue stores items until they are due. The owner's mutex guards it: its methods are called with the mutex held, and the queue
// locks it itself when an item is due.
type Queue[T any] struct {
	mu      *sync.Mutex
	release func(T)
	items   items[T]
	timer   *time.Timer
	closed  bool
}

// New returns an empty queue, which calls release with each item that is due. release is called with mu held.
func New[T any](mu *sync.Mutex, release func(T)) *Queue[T] {
	return &Queue[T]{mu: mu, release: release}
}

// Push adds an item. Items that are due at the same time are released in any order.
func (q *Queue[T]) Push(v T, due time.Time) {
	heap.Push(&q.items, entry[T]{v, due})
	if q.items[0].due.Equal(due) {
		q.arm()
	}
}

// Len returns the number of items.
func (q *Queue[T]) Len() int { return len(q.items) }

// All returns the items, in no order.
func (q *Queue[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, e := range q.items {
			if !yield(e.value) {
				return
			}
		}
	}
}

// Close stops the queue: it releases no more items. They stay in it.
func (q *Queue[T]) Close() {
	q.closed = true
	if q.timer != nil {
		q.timer.Stop()
	}
}

// arm sets the timer for the first item.
func (q *Queue[T]) arm() {
	if q.timer != nil {
		q.timer.Stop()
	}
	if len(q.items) > 0 && !q.closed {
		q.timer = time.AfterFunc(time.Until(q.items[0].due), q.expire)
	}
}

// expire releases the items that are due.
func (q *Queue[T]) expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.closed && len(q.items) > 0 && time.Until(q.items[0].due) <= 0 {
		q.release(heap.Pop(&q.items).(entry[T]).value)
	}
	q.arm()
}

type entry[T any] struct {
	value T
	due   time.Time
}

// items is a heap; the first item is the next one that is due.
type items[T any] []entry[T]

func (h items[T]) Len() int           { return len(h) }
func (h items[T]) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h items[T]) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *items[T]) Push(x any)        { *h = append(*h, x.(entry[T])) }
func (h *items[T]) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = entry[T]{}
	*h = (*h)[:last]
	return e
}
