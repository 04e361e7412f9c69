package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// stride is how many messages are read at once, and firstStride how many at first. strideBytes bounds what two
	// strides after each other have in memory, as far as their messages are equally large.
	stride      = 1000
	firstStride = 100
	strideBytes = 8 << 20
	// silence is how long nothing may come before the queue is asked whether there is more.
	silence = 2 * time.Second
	// settlePause is how often the queue is asked whether it shows what was put back. A broker with much to
	// do may need a while, and what is not there yet must not be missed; but where others consume, or take
	// messages out, it never is.
	settlePause  = 5 * time.Millisecond
	settleWithin = 30 * time.Second
	settleStill  = 5 * time.Second // the count has not changed for so long, and nobody consumes
	settleBeside = 2 * time.Second // others' consumers
)

// A browser reads a queue that nobody consumes, a poison queue, from front to end, without acking. Its
// owner takes some of the messages out; the others are back in their places when the browser is closed. It is not for
// concurrent use. At most one browser, of all processes, has a queue open; see lock.
//
// AMQP has no way to read on while everything stays in the queue, but by more prefetch: there is one more consumer
// whenever all that those before may fetch is unacked. When they end, the broker puts back the messages of one after the
// other, in any order of the consumers: so the order of a queue that was read is not that of arrival for sure. A consumer whose messages are acked fetches more. So what has
// come and was not visited counts as delivered, too.
type browser struct {
	ctx   context.Context
	t     *Transport
	queue string
	group string // whose poison queue it is
	conn  *amqp.Connection
	ch    *amqp.Channel
	lane  *lane // made at the first replay
	wire  *coalescer

	ignoreDone func() (notYet bool) // keeps the end of ctx from closing the channel

	arrived chan amqp.Delivery // from all consumers
	lost    chan struct{}      // one of them has ended
	closed  chan struct{}      // stops those who fill these
	credit  int                // messages that the consumers may fetch beyond those that were visited

	before  int             // messages that the queue had at the beginning
	visited int             // of those
	gone    int             // taken by somebody else
	through uint64          // everything up to this delivery tag was taken
	removed int             // messages that were taken
	taken   map[string]bool // those of them that have ids of their own
	back    bool            // some of that may have come back
	count   int             // highest count of deliveries of a message that was visited
}

// open opens a channel, which the end of ctx closes, so that nobody waits for an answer any more.
func (b *browser) open() error {
	ch, err := b.conn.Channel()
	if err != nil {
		return err
	}
	b.ch = ch
	b.arrived, b.lost, b.closed = make(chan amqp.Delivery), make(chan struct{}, 1), make(chan struct{})
	b.closeOnDone()
	return nil
}

// close closes the channel, so that what was read is put back. It does nothing where none is open.
func (b *browser) close() {
	if b.ch == nil {
		return
	}
	b.ignoreDone()
	closeQuietly(b.ch)
	close(b.closed)
	b.ch, b.lane = nil, nil
}

// closeOnDone has the end of ctx close the channel.
func (b *browser) closeOnDone() {
	ch := b.ch
	b.ignoreDone = context.AfterFunc(b.ctx, func() { closeQuietly(ch) })
}

// browse calls do with the queue open, under a lock. A queue that nobody has made yet has nothing in it.
func (t *Transport) browse(b *browser, lock string, do func(*browser) error) error {
	unlock, err := t.lock(b.ctx, b.conn, lock)
	if err != nil {
		return err
	}
	defer unlock()
	b.t = t
	if err := b.open(); err != nil {
		return err
	}
	defer func() { b.close() }()
	err = do(b)
	outer := b.ctx
	inner, cancel := lingering(outer)
	defer cancel()
	b.ctx = inner // who looks next must not miss what is not back yet
	switch {
	case err != nil && outer.Err() != nil:
		_ = b.requeue() // fails on a connection that is lost
		return context.Cause(outer)
	case isCode(err, amqp.NotFound):
		return nil
	}
	renew := b.mustRenew()
	if failed := b.requeue(); err == nil {
		err = failed
	}
	for n := 0; err == nil && b.back; n++ {
		if n == retakes {
			return errComesBack
		}
		err = b.retake()
		renew = renew || b.count >= renewAt // it was delivered once more
	}
	if err == nil && renew && outer.Err() == nil {
		if err := b.renew(outer); err != nil && outer.Err() == nil {
			t.cfg.Logger.Warn("leat: amqp: queue not renewed; a policy with a low delivery-limit may delete from it", "queue", b.queue, "error", err)
		}
	}
	return err
}

// finishWithin is how long a browser that is interrupted may take to come to an end that leaves no message in
// two places.
const finishWithin = 10 * time.Second

// finish carries out what is published and then taken, though ctx ends in the middle: else it would be in
// both places.
func (b *browser) finish(do func() error) error {
	if !b.ignoreDone() {
		return context.Cause(b.ctx)
	}
	outer := b.ctx
	inner, cancel := lingering(outer)
	defer cancel()
	b.ctx = inner
	b.closeOnDone()
	err := do()
	b.ignoreDone()
	b.ctx = outer
	b.closeOnDone()
	return err
}

// lingering returns ctx, but ends later.
func lingering(ctx context.Context) (longer context.Context, cancel func()) {
	longer, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(finishWithin, func() { end(context.Cause(ctx)) })
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() {
		stop()
		end(nil)
	}
}

// ready returns how many messages are in the queue and not being looked at. The answer comes after what was asked before.
func (b *browser) ready() (int, error) {
	q, err := b.ch.QueueDeclarePassive(b.queue, durable, autoDelete, exclusive, noWait, nil)
	return q.Messages, err
}

// walk calls visit with the messages in order, until it wants no more.
func (b *browser) walk(visit func(id string, d *amqp.Delivery) (more bool, err error)) error {
	seen := make(map[string]int)
	return b.walkStrides(func(batch []*amqp.Delivery) (bool, error) {
		for _, d := range batch {
			if more, err := visit(idOf(d, seen), d); err != nil || !more {
				return false, err
			}
		}
		return true, nil
	})
}

// walkStrides calls visit with the messages in order, some at once, until it wants no more.
func (b *browser) walkStrides(visit func([]*amqp.Delivery) (more bool, err error)) (err error) {
	if b.before, err = b.ready(); err != nil {
		return err
	}
	for size := firstStride; b.visited < b.before; {
		batch, err := b.next(min(size, b.before-b.visited))
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			b.gone = b.before - b.visited
			return nil
		}
		b.visited += len(batch)
		bytes := 1
		for _, d := range batch {
			distrust(d)
			bytes += len(d.Body) + tableSize(d.Headers)
			b.count = max(b.count, deliveries(d))
		}
		size = max(1, min(2*size, len(batch)*strideBytes/bytes, stride))
		batch, pilots := withoutPilots(batch)
		if err := b.take(pilots...); err != nil {
			return err
		}
		if more, err := visit(batch); err != nil || !more {
			return err
		}
	}
	return nil
}

// next reads so many messages, or fewer if somebody else takes messages out.
func (b *browser) next(n int) (batch []*amqp.Delivery, err error) {
	const size, global = 0, false
	const autoAck, noLocal = false, false
	if b.credit < n {
		// The consumers stay: the messages of a cancelled one would go to the end of the queue.
		if err := b.ch.Qos(n-b.credit, size, global); err != nil {
			return nil, err
		}
		from, err := b.ch.Consume(b.queue, byBroker, autoAck, exclusive, noLocal, noWait, nil)
		if err != nil {
			return nil, err
		}
		b.credit = n
		go receive(from, b.arrived, b.lost, b.closed)
	}
	timeout := time.NewTimer(silence)
	defer timeout.Stop()
	for left := 1; len(batch) < n; {
		select {
		case <-b.lost:
			return nil, errConnectionLost
		case d := <-b.arrived:
			batch, left = append(batch, &d), 1
			timeout.Reset(silence)
		case <-timeout.C:
			if left == 0 {
				n = len(batch) // and what the broker had sent before it said so has not come either
			} else if left, err = b.ready(); err != nil {
				return nil, err
			}
			timeout.Reset(silence)
		}
	}
	b.credit -= len(batch)
	slices.SortFunc(batch, byTag)
	return batch, nil
}

// receive hands on what one consumer fetches, until the browser is closed.
func receive(from <-chan amqp.Delivery, arrived chan<- amqp.Delivery, lost chan<- struct{}, closed <-chan struct{}) {
	for d := range from {
		select {
		case arrived <- d:
		case <-closed:
			return
		}
	}
	select {
	case lost <- struct{}{}:
	default:
	}
}

var errConnectionLost = errors.New("the connection was lost; try again")

func byTag(a, b *amqp.Delivery) int { return cmp.Compare(a.DeliveryTag, b.DeliveryTag) }

// pace is how many acks may be on their way by themselves. RabbitMQ keeps those beyond 32 back that the
// queue has not carried out yet, and forgets them with their channel.
const pace = 32

// take removes messages from the queue: where they are the first that were read, with one ack.
func (b *browser) take(all ...*amqp.Delivery) error {
	const alone, upTo = false, true
	slices.SortFunc(all, byTag)
	b.removed += len(all)
	b.credit += len(all)
	for _, d := range all {
		if id, ok := d.Headers[headerPoisonID].(string); ok {
			if b.taken == nil {
				b.taken = make(map[string]bool)
			}
			b.taken[id] = true
		}
	}
	first := 0
	for first < len(all) && all[first].DeliveryTag == b.through+1 {
		b.through++
		first++
	}
	if first > 0 {
		if err := b.ch.Ack(b.through, upTo); err != nil {
			return err
		}
	}
	for i, d := range all[first:] {
		if err := b.ch.Ack(d.DeliveryTag, alone); err != nil {
			return err
		}
		if i%pace == pace-1 {
			if _, err := b.ready(); err != nil { // an answer comes after what was asked before
				return err
			}
		}
	}
	return nil
}

// send publishes over the browser's own channel and waits until all is confirmed.
func (b *browser) send(out ...*outgoing) (err error) {
	if len(out) == 0 {
		return nil
	}
	if b.lane == nil {
		if b.lane, err = newLane(b.ch, b.wire); err != nil {
			return err
		}
	}
	pending, err := b.lane.send(b.ctx, b.t.publishing, out)
	if err != nil {
		return err
	}
	if len(pending) > 0 {
		return errConnectionLost
	}
	for _, o := range out {
		if o.unroutable {
			return fmt.Errorf("queue %q is not there; subscribe the group first", o.key)
		}
	}
	return nil
}

// requeue puts back what was read, and waits until the queue shows it: the next look must not miss it. Then
// it also shows what was taken and came back.
func (b *browser) requeue() error {
	if b.before == 0 {
		return nil
	}
	b.close() // a nack, too, would put them to the end of the queue
	if err := b.open(); err != nil {
		return err
	}
	left := b.before - b.removed - b.gone
	had, since := -1, time.Now() // how many are back, and since when
	for began := time.Now(); time.Since(began) < settleWithin; {
		q, err := b.ch.QueueDeclarePassive(b.queue, durable, autoDelete, exclusive, noWait, nil)
		if err != nil {
			return err
		}
		beside := q.Consumers > 0 && time.Since(began) > settleBeside // else they are this browser's own, which go
		if q.Messages >= left && (q.Consumers == 0 || beside) {
			b.back = len(b.taken) > 0 && q.Messages > b.before-len(b.taken)
			return nil
		}
		if beside {
			return nil
		}
		if q.Messages != had || q.Consumers > 0 {
			had, since = q.Messages, time.Now()
		}
		if time.Since(since) > settleStill {
			break
		}
		if err := sleep(b.ctx, settlePause); err != nil {
			return err
		}
	}
	return fmt.Errorf("only %d of %d messages are back in queue %q after they were read: a policy with delivery-limit, message-ttl or "+
		"max-length may have deleted the others, or somebody else takes them out; exempt leat's queues from such policies", had, left, b.queue)
}

// retakes is how often a browser tries to take what comes back. Each time at least pace messages don't.
const retakes = 1000

var errComesBack = errors.New("the broker puts messages back that were taken out; try again when it has less to do")

// retake takes once more what was taken and is there again. A quorum queue's acks are lost where their
// channel is closed while more than a few of them wait for the disk.
func (b *browser) retake() error {
	again := &browser{ctx: b.ctx, t: b.t, conn: b.conn, wire: b.wire, queue: b.queue, group: b.group}
	if err := again.open(); err != nil {
		return err
	}
	defer func() { again.close() }()
	err := again.walk(func(id string, d *amqp.Delivery) (bool, error) {
		if b.taken[id] {
			return true, again.take(d)
		}
		return true, nil
	})
	if err == nil {
		err = again.requeue()
	}
	b.back, b.count = again.back, max(b.count, again.count)
	return err
}
