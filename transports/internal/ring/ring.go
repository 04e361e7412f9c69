// Package ring provides a first-in-first-out queue.
package ring

// A Ring is a first-in-first-out queue in a circular buffer. The buffer grows as needed; an empty ring releases a large one. The
// zero Ring is empty and ready to use. It is not safe for concurrent use.
type Ring[T any] struct {
	buf  []T // its length is a power of two
	head int
	n    int
}

// keepBuffer is the largest buffer that an empty ring keeps.
const keepBuffer = 1024

// Len returns the number of elements.
func (r *Ring[T]) Len() int { return r.n }

func (r *Ring[T]) at(i int) int { return (r.head + i) & (len(r.buf) - 1) }

// PushBack adds an element behind the others.
func (r *Ring[T]) PushBack(v T) {
	r.grow()
	r.buf[r.at(r.n)] = v
	r.n++
}

// PushFront adds an element before the others.
func (r *Ring[T]) PushFront(v T) {
	r.grow()
	r.head = r.at(len(r.buf) - 1)
	r.buf[r.head] = v
	r.n++
}

// Get returns the element with the index i; the front has 0. It must exist.
func (r *Ring[T]) Get(i int) T { return r.buf[r.at(i)] }

// Swap exchanges the elements with the indexes i and j. Both must exist.
func (r *Ring[T]) Swap(i, j int) {
	i, j = r.at(i), r.at(j)
	r.buf[i], r.buf[j] = r.buf[j], r.buf[i]
}

// Front returns the first element; ok is false if there is none.
func (r *Ring[T]) Front() (v T, ok bool) {
	if r.n == 0 {
		return v, false
	}
	return r.buf[r.head], true
}

// PopFront removes and returns the first element; ok is false if there is none.
func (r *Ring[T]) PopFront() (v T, ok bool) {
	if r.n == 0 {
		return v, false
	}
	var zero T
	v, r.buf[r.head] = r.buf[r.head], zero
	r.head = r.at(1)
	r.n--
	if r.n == 0 && len(r.buf) > keepBuffer {
		*r = Ring[T]{}
	}
	return v, true
}

func (r *Ring[T]) grow() {
	if r.n < len(r.buf) {
		return
	}
	bigger := make([]T, max(8, 2*len(r.buf)))
	for i := range r.n {
		bigger[i] = r.buf[r.at(i)]
	}
	r.buf, r.head = bigger, 0
}

// Each calls visit with every value, from front to back.
func (r *Ring[T]) Each(visit func(T)) {
	for i := range r.n {
		visit(r.buf[r.at(i)])
	}
}
