package amqp

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// prefetchPerWorker and minPrefetch: enough to keep workers busy while acks are collected.
	prefetchPerWorker = 5
	minPrefetch       = 20
	maxPrefetch       = 1<<16 - 1

	// longestLocalDelay is the longest redelivery delay for which a delivery waits in this process.
	longestLocalDelay = 100 * time.Millisecond

	// crashPause is how long a copy of a message that was in a crash waits before it is delivered: its original must be acked
	// before the copy can crash this process as well.
	crashPause = 25 * time.Millisecond
)

// A receiver is a subscription of an unordered group.
type receiver struct {
	*intake[*item, session]
	queues   []string
	prefetch int

	// Guarded by mu:
	redeliveryTimers map[*item]redeliveryTimer // redeliveries that wait in this process
	out              int                       // delivered or being given back, and not settled
	outBytes         int                       // bytes of those that were in a file

	moving   sync.Mutex // locked while a message that is in a file is given back
	own      *link      // see isolate; guarded by the transport's mu
	bytes    *byteBudget
	declared bool // the queues were declared just now; used by runSession only
	failures int  // operations of this group because of which the broker closed the connection; used by runSession only
}

type redeliveryTimer struct {
	timer *time.Timer
	due   time.Time
}

func newReceiver(t *Transport, s driver.Subscription) *receiver {
	f := &receiver{queues: t.topology.queues(s), declared: true, redeliveryTimers: make(map[*item]redeliveryTimer)}
	f.intake = newIntake[*item, session](t, s, f.take, f.load, f.runSession)
	f.prefetch, f.bytes = t.cfg.PrefetchCount, newByteBudget(t.cfg.PrefetchBytes, overdue)
	f.prefetch = cmp.Or(f.prefetch, min(max(prefetchPerWorker*s.Concurrency, minPrefetch), maxPrefetch))
	return f
}

// take removes the next ready message and returns it.
func (f *receiver) take() (*item, bool) {
	if len(f.ready) == 0 {
		return nil, false
	}
	it := f.ready[0]
	if it.spilled != nil {
		if f.outBytes > 0 && f.outBytes+it.bytes > f.bytes.limit {
			return nil, false
		}
		f.countLoaded(it)
	}
	f.ready[0], f.ready = nil, f.ready[1:]
	f.countDelivered()
	return it, true
}

// countLoaded counts a message whose body is to be read from its file.
func (f *receiver) countLoaded(it *item) {
	it.outBytes = it.bytes
	f.outBytes += it.outBytes
}

// load reads the body of a message that waits in a file. If that fails the session ends, and the broker redelivers the message.
func (f *receiver) load(it *item) error {
	if it.spilled == nil {
		return nil
	}
	err := it.fromFile(&it.session.spill)
	if err == nil {
		return nil
	}
	if !it.session.over.Load() {
		f.t.cfg.Logger.Error("leat: amqp: a message can't be read from its temporary file; the group consumes anew", "group", f.sub.Group, "error", err)
		f.t.background(func(context.Context) { closeQuietly(it.session.ch) })
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unseen.add(&it.received)
	f.countSettled(it)
	return err
}

// countDelivered counts a delivery that is not settled.
func (f *receiver) countDelivered() {
	f.out++
	f.t.active.Add(1)
}

// arrive handles a delivery of the broker. It does not block.
func (f *receiver) arrive(s *session, queue string, raw *amqp.Delivery) {
	dropForeignHeaders(raw)
	if raw.Headers[headerControl] != nil { // from a time when the group was ordered
		s.acks.ack(raw.DeliveryTag)
		return
	}
	it := &item{receiver: f, session: s}
	it.receive(f.t, f.sub.Group, queue, raw)
	f.mu.Lock()
	f.unseen.correct(&it.received)
	f.mu.Unlock()
	s.correctAttempt(it)
	if f.mustCount(it) {
		f.count(it)
		return
	}
	if it.bytes >= leastSpilled && f.bytes.beyond(it.bytes) {
		if x := it.writeBody(&s.spill, it.raw.Body); x != nil {
			it.moveTo(x)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		f.ready = append(f.ready, it) // giveBack gives it back
	case it.raw.Headers[headerCrashes] != nil:
		f.redeliverHere(it, crashPause)
	default:
		f.ready = append(f.ready, it)
		f.calls.Wake()
	}
}

// mustCount reports whether a redelivery must be counted in the header: a classic queue reports that a message was delivered
// before, but not how often.
func (f *receiver) mustCount(it *item) bool {
	return it.crashes > 0 && it.raw.Redelivered && (f.t.cfg.QueueType == Classic || f.t.topology.watermill())
}

// count moves the message to the end of its queue, with the count in its header.
func (f *receiver) count(it *item) {
	f.mu.Lock()
	f.countDelivered()
	f.mu.Unlock()
	f.t.background(func(ctx context.Context) { f.move(ctx, it, it.attempts, 0) })
}

// finish counts a delivery as settled.
func (f *receiver) finish(it *item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.countSettled(it)
}

// countSettled counts a delivery as settled.
func (f *receiver) countSettled(it *item) {
	f.out--
	f.t.active.Add(-1)
	if it.outBytes > 0 {
		f.outBytes -= it.outBytes
		it.outBytes = 0
		f.calls.Wake()
	}
	if f.closed && f.out == 0 && f.session != nil {
		f.session.settled()
	}
}

// redeliver redelivers a message after a delay, with this number of attempts. A short delay passes in this process; a longer one
// in a queue of the broker (see delay.go).
func (f *receiver) redeliver(it *item, attempts int, after time.Duration) error {
	if it.session.over.Load() {
		f.finish(it)
		return it.late()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed && after <= longestLocalDelay {
		f.countSettled(it)
		f.redeliverHere(it.again(attempts), after)
		return nil
	}
	f.t.background(func(ctx context.Context) { f.move(ctx, it, attempts, after) })
	return nil
}

// redeliverHere keeps a redelivery in this process until its delay has passed.
func (f *receiver) redeliverHere(it *item, after time.Duration) {
	if after <= 0 {
		f.ready = slices.Insert(f.ready, 0, it) // in front, to keep the order
		f.calls.Wake()
		return
	}
	f.redeliveryTimers[it] = redeliveryTimer{time.AfterFunc(after, func() { f.wake(it) }), time.Now().Add(after)}
}

// wake makes a delayed message ready, unless its session has ended or the receiver was closed.
func (f *receiver) wake(it *item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, waits := f.redeliveryTimers[it]; !waits {
		return
	}
	delete(f.redeliveryTimers, it)
	f.ready = append(f.ready, it)
	f.calls.Wake()
}

// move publishes a copy of the message to where it waits for its redelivery, and acks the delivery after the copy is confirmed.
// If that fails, the delivery is requeued as it is.
func (f *receiver) move(ctx context.Context, it *item, attempts int, after time.Duration) {
	if it.spilled != nil { // one at a time, to bound the memory
		f.moving.Lock()
		defer f.moving.Unlock()
		f.mu.Lock()
		f.countLoaded(it)
		f.mu.Unlock()
		if f.load(it) != nil {
			return
		}
	}
	msg, room := it.copy(attempts), brokersRoom
	o := &outgoing{key: it.queue} // through the default exchange
	if after > 0 {
		o, room = f.t.topology.redelivery(f.sub, it.queue, after, msg)
	}
	o.msg = msg
	fit(&o.msg, f.t.publishing.frame()-room)
	if err := f.t.publisher.deliver(ctx, o); err != nil {
		if ctx.Err() == nil {
			f.t.cfg.Logger.Error("leat: amqp: redelivery not confirmed; the message is redelivered without delay",
				"group", f.sub.Group, "message_id", driver.OneLine(driver.MessageID(&it.msg), driver.MaxClassBytes), "error", err)
		}
		it.session.acks.requeue(it.raw.DeliveryTag)
		f.finish(it)
		return
	}
	_ = it.Ack() // if it is too late there are two copies, as after any lost connection
}

// purge drops the messages of an ended session that were not taken: the broker redelivers them.
func (f *receiver) purge(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for it, h := range f.redeliveryTimers {
		if it.session == s {
			h.timer.Stop()
			delete(f.redeliveryTimers, it)
		}
	}
	f.ready = slices.DeleteFunc(f.ready, func(it *item) bool {
		if it.session == s {
			f.unseen.add(&it.received)
		}
		return it.session == s
	})
	f.session = nil
	s.spill.close()
}

// link returns the connection over which the receiver consumes.
func (f *receiver) link() *link {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.own != nil {
		return f.own
	}
	return f.t.consuming
}
