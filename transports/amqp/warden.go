package amqp

import (
	"container/heap"
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// A warden holds so many messages, and more as long as their payloads are small.
	wardenStride = 2000
	wardenBytes  = 64 << 20

	// wardenRetry is when a message is tried again that the broker would not take.
	wardenRetry = time.Second
	// wardenGrace is how long it keeps what it holds while it can't publish.
	wardenGrace = 3 * time.Second
	wardenBatch = 64 // acks that don't wait any longer

	// wardenTries is how often a message comes that the broker refuses, from this process or others; then it is put
	// aside. Where the user has no right to its exchange, another process may.
	wardenTries          = 3
	wardenTriesForRights = 100
)

// warden takes messages from the queue "near", holds them until their time and sends them where they
// belong. Each is acked when its copy is confirmed, so what a warden holds when it ends comes to
// another. So it does when the connection is lost by which it would send them, while the one by which it
// takes them lives. All leat processes of a virtual host share the work.
type warden struct {
	t *Transport
	// publisher has a channel of its own: what the broker has against a delayed message, maybe another service's,
	// concerns nobody who publishes.
	publisher *publisher
	ctx       context.Context
	stop      context.CancelFunc

	mu    sync.Mutex
	held  heldHeap
	bytes int
	wake  chan struct{} // the earliest has changed
	done  chan struct{} // closed when nothing is sent any more
}

// waiting is a message that a warden holds.
type waiting struct {
	out  *outgoing
	due  time.Time
	tag  uint64
	from *hoard

	tries  int  // how often it came, when the broker refused it
	goBack bool // at its time it goes back to its queue, for others
}

// hoard is what came over one channel.
type hoard struct {
	*acks
	ctx context.Context // ends when all of it was given back
}

func newWarden(t *Transport) *warden {
	w := &warden{t: t, publisher: newPublisher(t.publishing, t.topology.repair), wake: make(chan struct{}, 1), done: make(chan struct{})}
	w.ctx, w.stop = context.WithCancel(t.ctx)
	t.active.Add(1) // Close waits for the last acks
	t.work.Go(func() {
		defer t.active.Add(-1)
		w.run()
	})
	t.work.Go(w.release)
	return w
}

// run takes messages in, from one loss of the connection to the next.
func (w *warden) run() {
	var pause backoff
	for w.ctx.Err() == nil {
		began := time.Now()
		err := w.serve()
		if w.ctx.Err() != nil {
			return
		}
		w.forget()
		if time.Since(began) > soundSession {
			pause.reset()
		}
		w.t.cfg.Logger.Warn("leat: amqp: delays are interrupted", "err", err)
		pause.wait(w.ctx)
	}
}

func (w *warden) serve() error {
	if _, _, err := w.t.publishing.connection(w.ctx); err != nil {
		return err
	}
	conn, _, err := w.t.consuming.connection(w.ctx)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	defer closeQuietly(ch)
	gone := ch.NotifyClose(make(chan *amqp.Error, 1))
	ctx, giveBack := context.WithCancel(w.t.ctx)
	defer giveBack()
	from := &hoard{newAcks(ch, wardenBatch, wardenBatch), ctx}
	defer from.end()

	const size, global = 0, false
	const autoAck, noLocal = false, false
	for stride := 1; ; stride++ {
		tag := "warden-" + strconv.Itoa(stride) // each may hold a stride of its own
		if err := ch.Qos(wardenStride, size, global); err != nil {
			return err
		}
		deliveries, err := ch.Consume(w.t.topology.ladder.near(), tag, autoAck, exclusive, noLocal, noWait, nil)
		if err != nil {
			return err
		}
		if err := w.take(from, deliveries); err != nil {
			if w.ctx.Err() != nil {
				w.finish(ch, tag, from)
			} else {
				select {
				case reason := <-gone:
					err = channelLost(reason)
				default:
				}
			}
			return err
		}
		if err := ch.Cancel(tag, noWait); err != nil {
			return err
		}
		for d := range deliveries { // what was on its way
			w.hold(from, &d)
		}
	}
}

// finish waits for what is being sent, and its acks: the answer to the cancel comes behind them.
func (w *warden) finish(ch *amqp.Channel, tag string, from *hoard) {
	<-w.done
	from.end()
	_ = ch.Cancel(tag, noWait) // else the channel is gone
}

var errCantSend = errors.New("the connection to publish by is lost; what is due soon is given back, for other processes")

var errCancelled = errors.New("the broker cancelled the consumer: the queue was deleted or lost its leader")

// take holds what comes. It returns nil when everything that the broker may send is held, none of it
// is due for a while, and there is memory for more.
func (w *warden) take(from *hoard, deliveries <-chan amqp.Delivery) error {
	assert := time.NewTicker(assertInterval)
	defer assert.Stop()
	check := time.NewTicker(wardenGrace / 3)
	defer check.Stop()
	connected := time.Now()
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return errCancelled
			}
			w.hold(from, &d)
			if w.full() {
				return nil
			}
		case <-check.C:
			if w.t.publishing.connected() {
				connected = time.Now()
			}
			if time.Since(connected) > wardenGrace {
				return errCantSend
			}
		case <-assert.C:
			w.assert()
		case <-w.ctx.Done():
			return context.Cause(w.ctx)
		}
	}
}

// full reports whether a stride of messages is held and more can be.
func (w *warden) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.held) > 0 && len(w.held)%wardenStride == 0 && w.bytes < wardenBytes
}

// assert makes the ladder again where somebody has deleted a part of it: a message would come early.
func (w *warden) assert() {
	err := withChannel(w.ctx, w.t.consuming, func(ch *amqp.Channel) error {
		return w.t.topology.ladder.declare(w.ctx, w.t.topology.declarer(ch))
	})
	if err != nil && w.ctx.Err() == nil {
		w.t.cfg.Logger.Error("leat: amqp: the queues for delays can't be declared", "err", err)
	}
}

func (w *warden) hold(from *hoard, d *amqp.Delivery) {
	out, due := w.t.topology.ladder.arrived(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	tries := deliveries(d)
	if d.Redelivered && tries == 0 {
		tries = wardenTries // a classic queue does not count; another process may have the right
	}
	w.push(&waiting{out: out, due: due, tag: d.DeliveryTag, from: from, tries: tries})
}

// push adds a message. The caller holds w.mu.
func (w *warden) push(x *waiting) {
	heap.Push(&w.held, x)
	w.bytes += len(x.out.msg.Body)
	if w.held[0] == x {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// forget drops what a lost channel had delivered: it comes again.
func (w *warden) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held, w.bytes = nil, 0
}

// release sends messages whose time has come.
func (w *warden) release() {
	defer close(w.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-w.wake:
		case <-w.ctx.Done():
			return
		}
		batch, next := w.due()
		if len(batch) > 0 && w.t.enter() {
			w.send(batch)
			w.t.active.Add(-1)
			next = 0
		}
		timer.Reset(next)
	}
}

// due takes out what is due, and says how long it is until the next.
func (w *warden) due() (batch []*waiting, next time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	for len(w.held) > 0 && len(batch) < publishWindow {
		if wait := w.held[0].due.Sub(now); wait > 0 {
			return batch, wait
		}
		x := heap.Pop(&w.held).(*waiting)
		w.bytes -= len(x.out.msg.Body)
		if x.goBack {
			x.from.requeue(x.tag)
			continue
		}
		batch = append(batch, x)
	}
	return batch, time.Hour
}

// send publishes a batch and acks what is confirmed; the rest stays.
func (w *warden) send(batch []*waiting) {
	out := make([]*outgoing, len(batch))
	for i, x := range batch {
		out[i] = x.out
	}
	err := w.publisher.send(batch[0].from.ctx, out)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range batch {
		switch {
		case x.out.confirmed && !x.out.unroutable:
			x.from.ack(x.tag)
		case x.out.confirmed:
			w.unroutable(x)
		case x.out.refused != nil:
			w.refused(x)
		case !x.from.isOver(): // else it comes again
			x.due = time.Now().Add(wardenRetry)
			w.push(x)
		}
	}
	if err != nil && batch[0].from.ctx.Err() == nil {
		w.t.cfg.Logger.Error("leat: amqp: delayed messages are not confirmed and tried again", "err", err)
	}
}

// refused gives a message back that the broker did not take from this process, after a moment, or puts it aside. The
// caller holds w.mu.
func (w *warden) refused(x *waiting) {
	most := wardenTries
	if isCode(x.out.refused, amqp.AccessRefused) {
		most = wardenTriesForRights
	}
	undelivered := w.t.topology.ladder.undelivered()
	if x.tries < most || x.out.key == undelivered && x.out.exchange == "" {
		x.due, x.goBack = time.Now().Add(wardenRetry), true
		w.push(x)
		return
	}
	w.t.cfg.Logger.Error("leat: amqp: delayed message put aside", "exchange", x.out.exchange, "key", x.out.key,
		"kept_in", undelivered, "message_id", x.out.msg.MessageId, "err", x.out.refused)
	h := x.out.msg.Headers
	h[headerDelayTo], h[headerKey] = x.out.exchange, x.out.key
	x.out = &outgoing{key: undelivered, msg: x.out.msg}
	w.push(x)
}

// unroutable ends the way of a message that reached no queue at its time. A delayed publishing that
// no group wants is counted like any other; a redelivery is kept for the operator, because its
// group's queue was deleted. The caller holds w.mu.
func (w *warden) unroutable(x *waiting) {
	if x.out.exchange != "" {
		w.t.unroutable.Add(1)
		w.t.cfg.Logger.Warn("leat: amqp: a delayed message reached no group", "exchange", x.out.exchange,
			"key", x.out.key, "message_id", x.out.msg.MessageId)
		x.from.ack(x.tag)
		return
	}
	w.t.cfg.Logger.Error("leat: amqp: a group's queue is gone; its delayed redelivery is kept", "queue", x.out.key,
		"kept_in", w.t.topology.ladder.undelivered(), "message_id", x.out.msg.MessageId)
	x.out = &outgoing{key: w.t.topology.ladder.undelivered(), msg: x.out.msg}
	w.push(x)
}

// heldHeap orders messages by their time.
type heldHeap []*waiting

func (h heldHeap) Len() int           { return len(h) }
func (h heldHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h heldHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *heldHeap) Push(x any)        { *h = append(*h, x.(*waiting)) }
func (h *heldHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return x
}
