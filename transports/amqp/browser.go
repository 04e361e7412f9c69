package amqp

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// stride is the number of messages that are read at once, and firstStride that of the first read. strideBytes bounds the
	// memory of two consecutive reads, if their messages are equally large.
	stride      = 1000
	firstStride = 100
	strideBytes = 8 << 20
	// settlePause is the interval at which the queue's count is read until all messages are back, because the next reader must
	// not miss any. A busy broker needs some time. If others consume or remove messages, the count never gets there.
	settlePause  = 5 * time.Millisecond
	settleWithin = 30 * time.Second
	settleStill  = 5 * time.Second // give up when the count has not changed for so long and there is no consumer
	settleBeside = 2 * time.Second // give up after this time if there are other consumers
)

// A browser reads a poison queue from front to end without acking. Its owner may take messages out; the others are back at
// their positions when the browser is closed. A browser is not safe for concurrent use. At most one browser of all processes
// reads a queue; see poisonQueue.browse.
type browser struct {
	fetcher
	link     *link           // of conn, or of the browser that has opened conn
	confirms *confirmChannel // over the channel of the fetcher; made when it is needed
	wire     *writeBatcher

	before int                   // messages that the queue had at the beginning
	gone   int                   // of those, removed by other clients
	taken  map[revisionKey]int64 // revisions of messages that were taken and have ids of their own
	back   bool                  // some of them may be in the queue again
	count  int                   // highest count of deliveries of a message that was visited
}

// newBrowser returns a browser that is not open yet. The connection is the link's, or one to the same broker.
func newBrowser(ctx context.Context, l *link, conn *amqp.Connection, wire *writeBatcher, queue string) *browser {
	return &browser{link: l, wire: wire, fetcher: fetcher{ctx: ctx, conn: conn, queue: queue, queueType: l.cfg.QueueType}}
}

// run opens the queue and calls do. Then it requeues the messages that do has not taken, and renews them if necessary. A queue that
// does not exist is empty.
func (b *browser) run(do func(*browser) error) error {
	if err := b.open(); err != nil {
		return err
	}
	defer b.close()
	err := do(b)
	outer := b.ctx
	inner, cancel := lingering(outer, finishWithin)
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
			b.link.cfg.Logger.Warn("leat: amqp: poison queue not rewritten; a policy with a low delivery-limit may delete messages from it", "queue", b.queue, "error", err)
		}
	}
	return err
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

// take removes messages from the queue.
func (b *browser) take(all ...*amqp.Delivery) error {
	for _, d := range all {
		if id, ok := d.Headers[headerPoisonID].(string); ok {
			if b.taken == nil {
				b.taken = make(map[revisionKey]int64)
			}
			b.taken[revisionKey{id: id}] = revisionOf(d)
		}
	}
	return b.remove(all)
}

// send publishes over the browser's own channel and waits until all is confirmed.
func (b *browser) send(out ...*outgoing) (err error) {
	if len(out) == 0 {
		return nil
	}
	if b.confirms == nil || b.confirms.ch != b.ch {
		b.asks.Lock()
		b.confirms, err = newConfirmChannel(b.ch, b.wire)
		b.asks.Unlock()
		if err != nil {
			return err
		}
	}
	pending, err := b.confirms.send(b.ctx, b.link, out)
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
	again := newBrowser(b.ctx, b.link, b.conn, b.wire, b.queue)
	if err := again.open(); err != nil {
		return err
	}
	defer again.close()
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
