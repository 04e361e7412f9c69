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

// silence is how long no message may arrive before the queue is asked whether it has more.
const silence = 2 * time.Second

// A fetcher gets the messages of a queue in their order, and leaves them in it. It is not safe for concurrent use.
//
// In AMQP a client can only read on in a queue, and leave the messages in it, by a larger prefetch. So the fetcher begins
// another consumer when the others have fetched all that they may, and another channel when one has many unacked messages; see
// reader. A consumer whose messages are acked fetches more, so messages that were not visited may have been delivered too.
type fetcher struct {
	ctx       context.Context
	conn      *amqp.Connection
	queue     string
	queueType QueueType
	ch        *amqp.Channel // for counts and publishing
	readers   []*reader     // guarded by asks

	ignoreDone func() (notYet bool) // keeps the end of ctx from closing the channel
	asks       sync.Mutex           // locked until the broker has answered: the client library may pass an answer to another call
	asker      asker                // guarded by asks

	arrived chan amqp.Delivery // from all consumers
	lost    chan struct{}      // one of them has ended
	closed  chan struct{}      // stops the goroutines that send to them
	credit  int                // messages that the consumers may fetch beyond those that were visited
	visited int                // messages that next has returned
	removed int                // of those
}

// A reader is one of the channels over which a fetcher reads. Each has a part of the queue, because a broker that gets an ack
// looks for the message among the unacked ones of the channel, and RabbitMQ 3.10 requeues a channel's messages in any order into a
// quorum queue.
type reader struct {
	*amqp.Channel
	number    int      // among the fetcher's
	consumers []string // their tags
	unacked   int      // messages that were visited and not taken
	taken     tags
}

// perReader returns how many unacked messages a channel may have before the fetcher opens the next one. It grows, so that a long queue
// does not need more channels than a connection may have. A classic queue puts messages of any channel back at their positions, which
// takes it less time if they are of one, and acks come only if messages are taken.
func (f *fetcher) perReader() int {
	if f.queueType == Classic && f.removed == 0 {
		return math.MaxInt
	}
	return max(stride, f.visited/32)
}

// open opens a channel, which is closed when ctx is done: no call waits for an answer after that.
func (f *fetcher) open() error {
	ch, err := f.conn.Channel()
	if err != nil {
		return err
	}
	f.ch = ch
	f.arrived, f.lost, f.closed = make(chan amqp.Delivery), make(chan struct{}, 1), make(chan struct{})
	f.closeOnDone()
	return nil
}

// close closes the channels, so that the broker requeues what was read. It does nothing if no channel is open.
func (f *fetcher) close() {
	if f.ch == nil {
		return
	}
	f.ignoreDone()
	f.cancel()
	f.closeChannels(f.ch)
	close(f.closed)
	f.ch = nil
}

// closeOnDone closes the channels when ctx is done.
func (f *fetcher) closeOnDone() {
	ch := f.ch
	f.ignoreDone = context.AfterFunc(f.ctx, func() { f.closeChannels(ch) })
}

// closeChannels closes the channels after the fetcher has received the answer that it waits for. The broker requeues the messages
// of one channel after the other, so that they keep their order.
func (f *fetcher) closeChannels(ch *amqp.Channel) {
	f.asks.Lock()
	defer f.asks.Unlock()
	for _, r := range f.readers {
		closeQuietly(r.Channel)
	}
	f.readers = nil
	closeQuietly(ch)
}

// cancel cancels the consumers if they may fetch more, so that none of them fetches a pilot, or what another one gives back.
func (f *fetcher) cancel() {
	if f.credit == 0 {
		return
	}
	f.asks.Lock()
	defer f.asks.Unlock()
	for _, r := range f.readers {
		for _, tag := range r.consumers {
			_ = r.Cancel(tag, noWait)
		}
		r.consumers = nil
	}
	f.credit = 0
}

// finishWithin is how long an interrupted call may take to remove the messages that it has published elsewhere.
const finishWithin = 10 * time.Second

// finish calls a function that publishes messages and then takes them out. It ignores the end of ctx for a while, because
// messages would be in two places otherwise.
func (f *fetcher) finish(do func() error) error {
	if !f.ignoreDone() {
		return context.Cause(f.ctx)
	}
	outer := f.ctx
	inner, cancel := lingering(outer, finishWithin)
	defer cancel()
	f.ctx = inner
	f.closeOnDone()
	err := do()
	f.ignoreDone()
	f.ctx = outer
	f.closeOnDone()
	return err
}

// lingering returns a context that ends a while after ctx.
func lingering(ctx context.Context, within time.Duration) (longer context.Context, cancel func()) {
	longer, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(within, func() { end(context.Cause(ctx)) })
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() {
		stop()
		end(nil)
	}
}

// counts returns the queue's counts.
func (f *fetcher) counts() (amqp.Queue, error) { return f.countsOver(f.ch) }

func (f *fetcher) countsOver(ch *amqp.Channel) (amqp.Queue, error) {
	f.asks.Lock()
	defer f.asks.Unlock()
	return f.asker.counts(ch, f.queue)
}

// ready returns the number of messages in the queue that no consumer has.
func (f *fetcher) ready() (int, error) {
	q, err := f.counts()
	return q.Messages, err
}

// next reads this number of messages, or fewer if another client removes messages.
func (f *fetcher) next(n int) (batch []*amqp.Delivery, err error) {
	if err := f.fetch(n); err != nil {
		return nil, err
	}
	timeout := time.NewTimer(silence)
	defer timeout.Stop()
	for left := 1; len(batch) < n; {
		select {
		case <-f.lost:
			return nil, errConnectionLost
		case d := <-f.arrived:
			batch, left = append(batch, &d), 1
			timeout.Reset(silence)
		case <-timeout.C:
			if left == 0 {
				n = len(batch) // nor has anything arrived that the broker had sent before its last answer
			} else if left, err = f.ready(); err != nil {
				return nil, err
			}
			timeout.Reset(silence)
		}
	}
	f.credit -= len(batch)
	f.visited += len(batch)
	for _, d := range batch {
		readerOf(d).unacked++
	}
	slices.SortFunc(batch, byTag)
	return batch, nil
}

// fetch lets the consumers fetch the next n messages, if they may not already, by another consumer. The others stay: the messages of
// a cancelled one would go to the end of the queue.
func (f *fetcher) fetch(n int) error {
	if f.credit >= n {
		return nil
	}
	f.asks.Lock()
	defer f.asks.Unlock()
	if f.ctx.Err() != nil {
		return context.Cause(f.ctx) // the channels are closed, or about to be
	}
	last := len(f.readers) - 1
	if last < 0 || f.readers[last].unacked >= f.perReader() {
		ch, err := f.conn.Channel()
		if err != nil {
			return err
		}
		last++
		f.readers = append(f.readers, &reader{Channel: ch, number: last})
	}
	r := f.readers[last]
	tag := fmt.Sprint("leat-", len(r.consumers))
	from, err := consume(r.Channel, f.queue, tag, n-f.credit, exclusive, nil)
	if err != nil {
		return err
	}
	r.consumers, f.credit = append(r.consumers, tag), n
	go r.receive(from, f.arrived, f.lost, f.closed)
	return nil
}

// receive passes on the deliveries of one consumer until the fetcher is closed.
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

// remove acks messages, so that they are not in the queue any more.
func (f *fetcher) remove(all []*amqp.Delivery) error {
	slices.SortFunc(all, byTag)
	f.removed += len(all)
	f.credit += len(all)
	for len(all) > 0 {
		r := readerOf(all[0])
		n := slices.IndexFunc(all, func(d *amqp.Delivery) bool { return readerOf(d) != r })
		if n < 0 {
			n = len(all)
		}
		if err := f.ack(r, all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// ack acks messages of a reader: with one ack those before the first one that stays.
func (f *fetcher) ack(r *reader, all []*amqp.Delivery) error {
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
		if i%pace == pace-1 && f.queueType != Classic {
			if _, err := f.countsOver(r.Channel); err != nil { // the broker answers after it has processed the acks
				return err
			}
		}
	}
	return nil
}
