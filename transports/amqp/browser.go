package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// stride is the number of messages that are read at once, and firstStride that of the first read. strideBytes bounds the
	// memory of two consecutive reads, if their messages are equally large.
	stride      = 1000
	firstStride = 100
	strideBytes = 8 << 20
	// silence is how long no message may arrive before the queue is asked whether it has more.
	silence = 2 * time.Second
	// settlePause is the interval at which the queue's count is read until all messages are back, because the next reader must
	// not miss any. A busy broker needs some time. If others consume or remove messages, the count never gets there.
	settlePause  = 5 * time.Millisecond
	settleWithin = 30 * time.Second
	settleStill  = 5 * time.Second // give up when the count has not changed for so long and there is no consumer
	settleBeside = 2 * time.Second // give up after this time if there are other consumers
)

// A browser reads a poison queue from front to end without acking. Its owner may take messages out; the others are back at
// their positions when the browser is closed. A browser is not safe for concurrent use. At most one browser of all processes
// reads a queue; see lock.
//
// In AMQP a client can only read on in a queue, and leave the messages in it, by a larger prefetch. So the browser begins
// another consumer when the others have fetched all that they may, and another channel when one has many unacked messages; see
// reader. A consumer whose messages are acked fetches more, so messages that were not visited may have been delivered too.
type browser struct {
	ctx      context.Context
	t        *Transport
	queue    string
	group    string // the group of the poison queue
	conn     *amqp.Connection
	ch       *amqp.Channel   // for counts and publishing
	readers  []*reader       // guarded by asks
	confirms *confirmChannel // made at the first replay
	wire     *writeBatcher

	ignoreDone func() (notYet bool) // keeps the end of ctx from closing the channel
	asks       sync.Mutex           // locked until the broker has answered: the client library may pass an answer to another call
	asker      asker                // guarded by asks

	arrived chan amqp.Delivery // from all consumers
	lost    chan struct{}      // one of them has ended
	closed  chan struct{}      // stops the goroutines that send to them
	credit  int                // messages that the consumers may fetch beyond those that were visited

	before  int                   // messages that the queue had at the beginning
	visited int                   // of those
	gone    int                   // removed by other clients
	removed int                   // messages that were taken
	taken   map[revisionKey]int64 // revisions of those of them that have ids of their own
	back    bool                  // some of them may be in the queue again
	count   int                   // highest count of deliveries of a message that was visited
}

// A reader is one of the channels over which a browser reads. Each has a part of the queue, because a broker that gets an ack
// looks for the message among the unacked ones of the channel, and RabbitMQ 3.10 requeues a channel's messages in any order into a
// quorum queue.
type reader struct {
	*amqp.Channel
	number    int      // among the browser's
	consumers []string // their tags
	unacked   int      // messages that were visited and not taken
	taken     tags
}

// perReader returns how many unacked messages a channel may have before the browser opens the next one. It grows, so that a long queue
// does not need more channels than a connection may have. A classic queue puts messages of any channel back at their positions, which
// takes it less time if they are of one, and acks come only if messages are taken.
func (b *browser) perReader() int {
	if b.t.cfg.QueueType == Classic && b.removed == 0 {
		return math.MaxInt
	}
	return max(stride, b.visited/32)
}

// open opens a channel, which is closed when ctx is done: no call waits for an answer after that.
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

// close closes the channels, so that the broker requeues what was read. It does nothing if no channel is open.
func (b *browser) close() {
	if b.ch == nil {
		return
	}
	b.ignoreDone()
	b.cancel()
	b.closeChannels(b.ch)
	close(b.closed)
	b.ch, b.confirms = nil, nil
}

// closeOnDone closes the channels when ctx is done.
func (b *browser) closeOnDone() {
	ch := b.ch
	b.ignoreDone = context.AfterFunc(b.ctx, func() { b.closeChannels(ch) })
}

// closeChannels closes the channels after the browser has received the answer that it waits for. The broker requeues the messages
// of one channel after the other, so that they keep their order.
func (b *browser) closeChannels(ch *amqp.Channel) {
	b.asks.Lock()
	defer b.asks.Unlock()
	for _, r := range b.readers {
		closeQuietly(r.Channel)
	}
	b.readers = nil
	closeQuietly(ch)
}

// cancel cancels the consumers if they may fetch more, so that none of them fetches a pilot, or what another one gives back.
func (b *browser) cancel() {
	if b.credit == 0 {
		return
	}
	b.asks.Lock()
	defer b.asks.Unlock()
	for _, r := range b.readers {
		for _, tag := range r.consumers {
			_ = r.Cancel(tag, noWait)
		}
		r.consumers = nil
	}
	b.credit = 0
}

// counts returns the queue's counts.
func (b *browser) counts() (amqp.Queue, error) { return b.countsOver(b.ch) }

func (b *browser) countsOver(ch *amqp.Channel) (amqp.Queue, error) {
	b.asks.Lock()
	defer b.asks.Unlock()
	return b.asker.counts(ch, b.queue)
}

// browse opens the queue under a lock and calls do. A queue that does not exist is empty.
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
	b.ctx = inner // the next reader must find all messages
	if isCode(err, amqp.NotFound) && outer.Err() == nil {
		return nil
	}
	renew := err == nil && b.mustRenew()
	failed := b.requeue()
	for n := 0; failed == nil && b.back; n++ {
		if n == maxAckAgain {
			failed = errComesBack
			break
		}
		failed = b.ackAgain()
		renew = renew || b.count >= renewAt // it was delivered once more
	}
	switch {
	case err != nil && outer.Err() != nil:
		return context.Cause(outer)
	case err == nil:
		err = failed
	}
	if err == nil && renew && outer.Err() == nil {
		if err := b.renew(outer); err != nil && outer.Err() == nil {
			t.cfg.Logger.Warn("leat: amqp: poison queue not rewritten; a policy with a low delivery-limit may delete messages from it", "queue", b.queue, "error", err)
		}
	}
	return err
}

// finishWithin is how long an interrupted browser may take to remove the messages that it has published elsewhere.
const finishWithin = 10 * time.Second

// finish calls a function that publishes messages and then takes them out. It ignores the end of ctx for a while, because
// messages would be in two places otherwise.
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

// lingering returns a context that ends finishWithin after ctx.
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

// ready returns the number of messages in the queue that no consumer has.
func (b *browser) ready() (int, error) {
	q, err := b.counts()
	return q.Messages, err
}

// walk calls visit with the messages in order, until it returns false.
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

// walkStrides calls visit with the messages in order, several at once, until it returns false.
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
			dropForeignHeaders(d)
			bytes += len(d.Body) + tableSize(d.Headers)
			b.count = max(b.count, deliveries(d))
		}
		size = max(1, min(2*size, len(batch)*strideBytes/bytes, stride))
		if b.visited > firstStride { // a short look reads no more than it needs
			if err := b.fetch(min(size, b.before-b.visited)); err != nil {
				return err
			}
		}
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

// next reads this number of messages, or fewer if another client removes messages.
func (b *browser) next(n int) (batch []*amqp.Delivery, err error) {
	if err := b.fetch(n); err != nil {
		return nil, err
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
				n = len(batch) // nor has anything arrived that the broker had sent before its last answer
			} else if left, err = b.ready(); err != nil {
				return nil, err
			}
			timeout.Reset(silence)
		}
	}
	b.credit -= len(batch)
	for _, d := range batch {
		readerOf(d).unacked++
	}
	slices.SortFunc(batch, byTag)
	return batch, nil
}

// fetch lets the consumers fetch the next n messages, if they may not already, by another consumer. The others stay: the messages of
// a cancelled one would go to the end of the queue.
func (b *browser) fetch(n int) error {
	if b.credit >= n {
		return nil
	}
	b.asks.Lock()
	defer b.asks.Unlock()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx) // the channels are closed, or about to be
	}
	last := len(b.readers) - 1
	if last < 0 || b.readers[last].unacked >= b.perReader() {
		ch, err := b.conn.Channel()
		if err != nil {
			return err
		}
		last++
		b.readers = append(b.readers, &reader{Channel: ch, number: last})
	}
	r := b.readers[last]
	tag := fmt.Sprint("leat-", len(r.consumers))
	from, err := consume(r.Channel, b.queue, tag, n-b.credit, exclusive, nil)
	if err != nil {
		return err
	}
	r.consumers, b.credit = append(r.consumers, tag), n
	go r.receive(from, b.arrived, b.lost, b.closed)
	return nil
}

// receive passes on the deliveries of one consumer until the browser is closed.
func (r *reader) receive(from <-chan amqp.Delivery, arrived chan<- amqp.Delivery, lost chan<- struct{}, closed <-chan struct{}) {
	for d := range from {
		d.Acknowledger = r
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

// readerOf returns the reader of a message.
func readerOf(d *amqp.Delivery) *reader { return d.Acknowledger.(*reader) }

// byTag orders messages as they were delivered.
func byTag(a, b *amqp.Delivery) int {
	return cmp.Or(cmp.Compare(readerOf(a).number, readerOf(b).number), cmp.Compare(a.DeliveryTag, b.DeliveryTag))
}

// pace is how many single acks may be in flight. RabbitMQ delays those beyond 32 that the queue has not processed yet, and drops them
// with their channel.
const pace = 32

// take removes messages from the queue.
func (b *browser) take(all ...*amqp.Delivery) error {
	slices.SortFunc(all, byTag)
	b.removed += len(all)
	b.credit += len(all)
	for _, d := range all {
		if id, ok := d.Headers[headerPoisonID].(string); ok {
			if b.taken == nil {
				b.taken = make(map[revisionKey]int64)
			}
			b.taken[revisionKey{id: id}] = revisionOf(d)
		}
	}
	for len(all) > 0 {
		r := readerOf(all[0])
		n := slices.IndexFunc(all, func(d *amqp.Delivery) bool { return readerOf(d) != r })
		if n < 0 {
			n = len(all)
		}
		if err := b.ack(r, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// ack acks messages of a reader: with one ack those before the first one that stays.
func (b *browser) ack(r *reader, all []*amqp.Delivery) error {
	r.unacked -= len(all)
	for _, d := range all {
		r.taken.add(d.DeliveryTag)
	}
	stays := r.taken.firstMissing()
	last := uint64(0)
	for len(all) > 0 && all[0].DeliveryTag < stays {
		last, all = all[0].DeliveryTag, all[1:]
	}
	if last > 0 {
		if err := r.Ack(last, upTo); err != nil {
			return err
		}
	}
	for i, d := range all {
		if err := r.Ack(d.DeliveryTag, single); err != nil {
			return err
		}
		if i%pace == pace-1 && b.t.cfg.QueueType != Classic {
			if _, err := b.countsOver(r.Channel); err != nil { // the broker answers after it has processed the acks
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
	if b.confirms == nil {
		b.asks.Lock()
		b.confirms, err = newConfirmChannel(b.ch, b.wire)
		b.asks.Unlock()
		if err != nil {
			return err
		}
	}
	pending, err := b.confirms.send(b.ctx, b.t.publishing, out)
	if err != nil {
		return err
	}
	if len(pending) > 0 {
		return errConnectionLost
	}
	for _, o := range out {
		if o.unroutable {
			return fmt.Errorf("queue %q does not exist; subscribe the group first", o.key)
		}
	}
	return nil
}

// requeue closes the channel, so that the broker requeues what was read, and waits until the queue's count shows it: the next
// reader must not miss it. The count also shows whether messages that were taken out are in the queue again.
func (b *browser) requeue() error {
	if b.before == 0 {
		return nil
	}
	b.close() // a nack would put them at the end of the queue
	if err := b.open(); err != nil {
		return err
	}
	left := b.before - b.removed - b.gone
	had, since := -1, time.Now() // how many are back, and since when
	for began := time.Now(); time.Since(began) < settleWithin; {
		q, err := b.counts()
		if err != nil {
			return err
		}
		beside := q.Consumers > 0 && time.Since(began) > settleBeside // else they are this browser's own, which end
		if q.Messages >= left && (q.Consumers == 0 || beside) {
			b.back = len(b.taken) > 0 && q.Messages > left
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
		"max-length may have deleted the others, or another client removes them; exempt leat's queues from such policies", had, left, b.queue)
}

// maxAckAgain is how often a browser acks again what was requeued. Each time at least pace messages stay acked.
const maxAckAgain = 1000

var errComesBack = errors.New("the broker requeues messages that were acked; try again when it has less to do")

// ackAgain acks again messages that were acked and are in the queue again. A quorum queue loses acks if their channel is closed while
// more than a few of them wait for the disk.
func (b *browser) ackAgain() error {
	again := &browser{ctx: b.ctx, t: b.t, conn: b.conn, wire: b.wire, queue: b.queue, group: b.group}
	if err := again.open(); err != nil {
		return err
	}
	defer func() { again.close() }()
	err := again.walk(func(id string, d *amqp.Delivery) (bool, error) {
		if rev, taken := b.taken[keyOf(id, d)]; taken && rev == revisionOf(d) {
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
