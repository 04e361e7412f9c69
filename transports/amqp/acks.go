package amqp

import (
	"math"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// ackInterval is how long an ack may wait for others, so that one frame can tell of many.
const ackInterval = 5 * time.Millisecond

// acks collects the acks of one channel. One frame acks all messages up to a delivery tag; those
// beyond the oldest message that is still being handled are acked one by one.
type acks struct {
	ch    *amqp.Channel
	batch int // acks that don't wait any longer

	mu    sync.Mutex
	open  map[uint64]struct{} // delivered and not settled
	done  []uint64            // settled and not acked
	timer *time.Timer
	armed bool
	held  bool // nothing is sent for now
	ended bool
}

func newAcks(ch *amqp.Channel, batch int) *acks {
	a := &acks{ch: ch, batch: batch, open: make(map[uint64]struct{})}
	a.timer = time.AfterFunc(time.Hour, a.tick)
	a.timer.Stop()
	return a
}

func (a *acks) setBatch(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.batch = n
}

func (a *acks) delivered(tag uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open[tag] = struct{}{}
}

// ack reports false when the channel is gone: the message comes again.
func (a *acks) ack(tag uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return false
	}
	delete(a.open, tag)
	a.done = append(a.done, tag)
	switch {
	case a.held:
	case len(a.done) >= a.batch:
		return a.flush()
	case !a.armed:
		a.armed = true
		a.timer.Reset(ackInterval)
	}
	return true
}

// requeue gives a message back to the head of its queue. The broker counts that as a delivery.
func (a *acks) requeue(tag uint64) {
	const multiple, requeue = false, true
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended {
		delete(a.open, tag)
		_ = a.ch.Nack(tag, multiple, requeue) // else the end of the channel does it
	}
}

// isOver reports whether the channel is gone.
func (a *acks) isOver() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

func (a *acks) tick() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.armed = false
	if !a.ended && !a.held {
		a.flush()
	}
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
	if !a.ended && len(a.done) > 0 {
		a.flush()
	}
}

// flush acks what is settled. The caller holds a.mu.
func (a *acks) flush() bool {
	const one, multiple = false, true
	oldest := uint64(math.MaxUint64)
	for tag := range a.open {
		oldest = min(oldest, tag)
	}
	upTo := uint64(0)
	var err error
	for _, tag := range a.done {
		switch {
		case tag < oldest:
			upTo = max(upTo, tag)
		case err == nil:
			err = a.ch.Ack(tag, one)
		}
	}
	if upTo > 0 && err == nil {
		err = a.ch.Ack(upTo, multiple)
	}
	a.done = a.done[:0]
	return err == nil
}

// end sends what is left and makes every later ack a late one.
func (a *acks) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended && len(a.done) > 0 {
		a.flush()
	}
	a.ended = true
	a.timer.Stop()
}
