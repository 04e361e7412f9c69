package memory

// ring is a first-in-first-out queue in a circular buffer that grows and, once empty, lets go of a
// large buffer. The zero ring is empty.
type ring[T any] struct {
	buf  []T // its length is a power of two
	head int
	n    int
}

// keepBuffer is the largest buffer that an empty ring holds on to.
const keepBuffer = 1024

func (r *ring[T]) len() int { return r.n }

func (r *ring[T]) at(i int) int { return (r.head + i) & (len(r.buf) - 1) }

func (r *ring[T]) pushBack(v T) {
	r.grow()
	r.buf[r.at(r.n)] = v
	r.n++
}

func (r *ring[T]) pushFront(v T) {
	r.grow()
	r.head = r.at(len(r.buf) - 1)
	r.buf[r.head] = v
	r.n++
}

// get is the element i places behind the front; it must be there.
func (r *ring[T]) get(i int) T { return r.buf[r.at(i)] }

func (r *ring[T]) swap(i, j int) {
	i, j = r.at(i), r.at(j)
	r.buf[i], r.buf[j] = r.buf[j], r.buf[i]
}

func (r *ring[T]) front() (v T, ok bool) {
	if r.n == 0 {
		return v, false
	}
	return r.buf[r.head], true
}

func (r *ring[T]) popFront() (v T, ok bool) {
	if r.n == 0 {
		return v, false
	}
	var zero T
	v, r.buf[r.head] = r.buf[r.head], zero
	r.head = r.at(1)
	r.n--
	if r.n == 0 && len(r.buf) > keepBuffer {
		*r = ring[T]{}
	}
	return v, true
}

func (r *ring[T]) grow() {
	if r.n < len(r.buf) {
		return
	}
	bigger := make([]T, max(8, 2*len(r.buf)))
	for i := range r.n {
		bigger[i] = r.buf[r.at(i)]
	}
	r.buf, r.head = bigger, 0
}

// each calls visit with every value, from front to back.
func (r *ring[T]) each(visit func(T)) {
	for i := range r.n {
		visit(r.buf[r.at(i)])
	}
}
