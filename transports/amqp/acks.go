package amqp

import (
	"math"
	"math/bits"
	"slices"
	"sync"
	"time"
)

const (
	// ackInterval is how long an ack may wait for others, so that one frame can ack many messages.
	ackInterval = 5 * time.Millisecond
	// ackPatience is how many intervals an ack waits for an older message that is not settled. A quorum queue writes each
	// frame to its log, and the older message is mostly settled by then.
	ackPatience = 3
	// ackMemory is how long frames count as recent: longer than a quorum queue takes to write them to its log.
	ackMemory = 500 * time.Millisecond
	// copyPatience takes the place of ackPatience if a copy of the older message is about to be confirmed.
	copyPatience = 20
)

// acks collects the acks of one channel. One frame acks all messages up to a delivery tag. Acks behind the oldest unsettled message
// wait a short time for it, and are then sent one by one, so that it does not delay the others for long. Methods that don't lock
// mu are called with mu locked.
type acks struct {
	ch     acker
	batch  int // number of acks that are sent without further delay
	window int // the same for acks behind the oldest unsettled message

	mu       sync.Mutex
	settled  tags
	done     []uint64 // settled and not acked
	beyond   []uint64 // those behind an older message that is not settled
	waited   int      // intervals that beyond has waited
	stuck    uint64   // the oldest unsettled message, for which acks do not wait any more
	timer    *time.Timer
	armed    bool
	paused   bool // no acks are sent for now
	ended    bool
	expected map[uint64]bool // not settled yet, but about to be

	since       time.Time // beginning of the current interval of counted frames
	before, now int       // frames in the previous interval and in this one
}

// acker is the part of a channel that acks use.
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

// fit sets batch and window for a channel with this prefetch.
func (a *acks) fit(prefetch int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.batch, a.window = max(prefetch/prefetchPerWorker, 1), prefetch*3/4
}

// ack acks a message. It returns false if the channel is closed: then the message is redelivered.
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
	case a.paused:
	case len(a.done) >= a.batch:
		return a.flush()
	default:
		a.arm()
	}
	return true
}

// arm starts the timer unless it runs.
func (a *acks) arm() {
	if !a.armed {
		a.armed = true
		a.timer.Reset(ackInterval)
	}
}

// requeue gives a message back to the head of its queue. The broker counts a delivery.
func (a *acks) requeue(tag uint64) {
	const requeue = true
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended {
		a.settled.add(tag)
		_ = a.ch.Nack(tag, single, requeue) // if it fails, closing the channel requeues the message
	}
}

// hurry sends all acks without delay.
func (a *acks) hurry() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended && !a.paused {
		a.waited = copyPatience
		a.flush()
	}
}

func (a *acks) tick() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.armed = false
	if a.ended || a.paused {
		return
	}
	if len(a.beyond) > 0 {
		a.waited++
	}
	a.flush()
}

// pause stops sending acks. Without acks the broker soon reaches the prefetch limit, and then a consumer can be cancelled while no
// delivery is on its way. Such a delivery would be requeued and counted.
func (a *acks) pause() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.paused = true
}

// resume ends pause and sends the waiting acks.
func (a *acks) resume() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.paused = false
	if !a.ended {
		a.flush()
	}
}

// flush acks the settled messages before the oldest unsettled one, and those behind it if they have waited long enough.
func (a *acks) flush() bool {
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
				err = a.send(tag, single)
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

// recent returns the approximate number of frames that were sent within ackMemory.
func (a *acks) recent() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.since) > ackMemory {
		return 0
	}
	return a.before + a.now
}

// patience returns how many intervals acks wait for the oldest unsettled message.
func (a *acks) patience(oldest uint64) int {
	if a.expected[oldest] {
		return copyPatience
	}
	return ackPatience
}

// expect records that a message will be acked soon, when the broker has confirmed a copy of it.
func (a *acks) expect(tag uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.expected[tag] = true
}

// end sends the remaining acks. Later calls of ack return false.
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

// tags is a set of delivery tags. A channel numbers deliveries from 1.
type tags struct {
	base uint64   // all tags up to this one are in the set
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

// firstMissing returns the lowest tag that is not in the set.
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
