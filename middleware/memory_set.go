package middleware

// hash is the 96-bit hash of a key. Among 4 million marks, a new key has the hash of another one with a probability of 1 in
// 10^22. high is never 0.
type hash struct {
	high uint64
	low  uint32
}

// set is a set of hashes without removal, in a flat table with linear probing. It has 12 bytes per slot, where a map has 36,
// and no pointers that the garbage collector must follow.
type set struct {
	high  []uint64 // 0 in a free slot
	low   []uint32
	count int
	limit int // of count
}

const firstSlots = 64

func newSet(limit int) *set { return &set{limit: limit} }

func (s *set) full() bool { return s.count >= s.limit }

func (s *set) has(h hash) bool {
	if s == nil || s.count == 0 {
		return false
	}
	_, found := s.slot(h)
	return found
}

func (s *set) add(h hash) {
	if s.count >= len(s.high)/5*4 {
		s.grow()
	}
	i, found := s.slot(h)
	if found {
		return
	}
	s.high[i], s.low[i] = h.high, h.low
	s.count++
}

// slot returns the slot of h, or the free slot for it. There is always a free one.
func (s *set) slot(h hash) (i int, found bool) {
	n := len(s.high)
	i = int(uint64(h.low) * uint64(n) >> 32) // less than n
	for s.high[i] != 0 {
		if s.high[i] == h.high && s.low[i] == h.low {
			return i, true
		}
		if i++; i == n {
			i = 0
		}
	}
	return i, false
}

// grow doubles the table, up to the size that limit needs.
func (s *set) grow() {
	slots := max(firstSlots, 2*len(s.high))
	slots = min(slots, s.limit/4*5+firstSlots)
	bigger := set{high: make([]uint64, slots), low: make([]uint32, slots), limit: s.limit}
	for i, high := range s.high {
		if high == 0 {
			continue
		}
		j, _ := bigger.slot(hash{high, s.low[i]})
		bigger.high[j], bigger.low[j] = high, s.low[i]
	}
	s.high, s.low = bigger.high, bigger.low
}
