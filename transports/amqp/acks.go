package amqp

import (
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"
)

const (
	// ackInterval is how long an ack may wait for others, so that one frame can tell of many.
	ackInterval = 5 * time.Millisecond
	// ackPatience is how many intervals one waits that is beyond a message that is still out. A quorum
	// queue writes each frame to its log, and what is out is mostly settled by then.
	ackPatience = 3
	// ackMemory is for how long frames count as recent: longer than a quorum queue takes to write them down.
	ackMemory = 500 * time.Millisecond
	// copyPatience is the same where the broker is about to confirm a copy of that message.
	copyPatience = 20
)

// acks collects the acks of one channel. One frame acks all messages up to a delivery tag. Those beyond
// the oldest message that is still out wait a moment for it, and are then acked one by one, so that it
// holds up no other.
type acks struct {
	ch     acker
	batch  int // acks that don't wait any longer
	window int // acks beyond the oldest message out that don't

	mu       sync.Mutex
	settled  tags
	done     []uint64 // settled and not acked
	beyond   []uint64 // those of them that wait for an older one
	waited   int      // intervals that they did
	stuck    uint64   // the oldest message out, for which nobody waits any more
	timer    *time.Timer
	armed    bool
	held     bool // nothing is sent for now
	ended    bool
	expected map[uint64]bool // out, and about to be settled

	since       time.Time // when the frames began that are counted now
	before, now int       // frames in the interval before, and in this one
}

// acker is the channel.
type acker interface {
	Ack(tag uint64, multiple bool) error
	Nack(tag uint64, multiple, requeue bool) error
}

func newAcks(ch acker, batch, window int) *acks {
	a := &acks{ch: ch, expected: make(map[uint64]bool), batch: batch, window: window}
	a.timer = time.AfterFunc(time.Hour, a.tick)
	a.timer.Stop()
	return a
}

// fit sets the bounds for a channel with so many messages fetched ahead.
func (a *acks) fit(prefetch int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.batch, a.window = max(prefetch/prefetchPerWorker, 1), prefetch*3/4
}

// ack reports false when the channel is gone: the message comes again.
func (a *acks) ack(tag uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return false
	}
	a.settled.add(tag)
	delete(a.expected, tag)
	a.done = append(a.done, tag)
	switch {
	case a.held:
	case len(a.done) >= a.batch:
		return a.flush()
	default:
		a.arm()
	}
	return true
}

// arm makes sure of a tick. The caller holds a.mu.
func (a *acks) arm() {
	if !a.armed {
		a.armed = true
		a.timer.Reset(ackInterval)
	}
}

// requeue gives a message back to the head of its queue. The broker counts that as a delivery.
func (a *acks) requeue(tag uint64) {
	const multiple, requeue = false, true
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended {
		a.settled.add(tag)
		_ = a.ch.Nack(tag, multiple, requeue) // else the end of the channel does it
	}
}

// hurry sends everything at once.
func (a *acks) hurry() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended && !a.held {
		a.waited = copyPatience
		a.flush()
	}
}

func (a *acks) tick() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.armed = false
	if a.ended || a.held {
		return
	}
	if len(a.beyond) > 0 {
		a.waited++
	}
	a.flush()
}

// hold keeps acks back. While the broker gets none, it has soon delivered all it may, and a consumer
// can be cancelled without anything on its way to it: that would go back to the queue and be counted
// as delivered.
func (a *acks) hold() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = true
}

// goOn sends what was held back.
func (a *acks) goOn() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held = false
	if !a.ended {
		a.flush()
	}
}

// flush acks what is settled up to the oldest message out, and what is beyond it when that has waited
// enough. The caller holds a.mu.
func (a *acks) flush() bool {
	const alone, upTo = false, true
	oldest, last := a.settled.firstMissing(), uint64(0)
	a.beyond = append(a.beyond, a.done...)
	a.done = a.done[:0]
	a.beyond = slices.DeleteFunc(a.beyond, func(tag uint64) bool {
		if tag < oldest {
			last = max(last, tag)
		}
		return tag < oldest
	})
	var err error
	if last > 0 {
		err = a.send(last, upTo)
	}
	switch {
	case len(a.beyond) == 0:
		a.waited = 0
	case oldest == a.stuck, len(a.beyond) >= a.window, a.waited >= a.patience(oldest):
		slices.Sort(a.beyond)
		for _, tag := range a.beyond {
			if err == nil {
				err = a.send(tag, alone)
			}
		}
		a.beyond, a.waited, a.stuck = a.beyond[:0], 0, oldest
	default:
		a.arm()
	}
	return err == nil
}

func (a *acks) send(tag uint64, multiple bool) error {
	if now := time.Now(); now.Sub(a.since) > ackMemory {
		a.since, a.before, a.now = now, a.now, 0
	}
	a.now++
	return a.ch.Ack(tag, multiple)
}

// recent is about how many frames were sent a moment ago.
func (a *acks) recent() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.since) > ackMemory {
		return 0
	}
	return a.before + a.now
}

// patience is how many intervals others wait for the oldest message out. The caller holds a.mu.
func (a *acks) patience(oldest uint64) int {
	if a.expected[oldest] {
		return copyPatience
	}
	return ackPatience
}

// expect tells of a message whose ack is on its way: it is sent when the broker has confirmed a copy.
func (a *acks) expect(tag uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expected[tag] = true
}

// end sends what is left and makes every later ack a late one.
func (a *acks) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended {
		a.waited = copyPatience
		a.flush()
	}
	a.ended = true
	a.timer.Stop()
}

// tags is a set of delivery tags, which a channel counts from one. What was not delivered yet is not in
// it, and so never below all that is missing.
type tags struct {
	base uint64   // all up to this one are in it
	bits []uint64 // of those that follow
}

func (s *tags) add(tag uint64) {
	if tag <= s.base {
		return
	}
	i := tag - s.base - 1
	for uint64(len(s.bits)) <= i/64 {
		s.bits = append(s.bits, 0)
	}
	s.bits[i/64] |= 1 << (i % 64)
}

// firstMissing is the lowest tag that is not in the set.
func (s *tags) firstMissing() uint64 {
	for len(s.bits) > 0 && s.bits[0] == math.MaxUint64 {
		s.base += 64
		s.bits = s.bits[1:]
	}
	if len(s.bits) == 0 {
		return s.base + 1
	}
	return s.base + 1 + uint64(bits.TrailingZeros64(^s.bits[0])) //nolint:gosec // at most 64
}
