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
	wardenBatch = 64 // acks that don't wait any longer
)

// warden takes messages from the queue "near", holds them until their time and sends them where they
// belong. Each is acked when its copy is confirmed, so what a warden holds when it ends comes to
// another. All leat processes of a virtual host share the work.
type warden struct {
	t    *Transport
	ctx  context.Context
	stop context.CancelFunc

	mu    sync.Mutex
	held  heldHeap
	bytes int
	wake  chan struct{} // the earliest has changed
}

// waiting is a message that a warden holds.
type waiting struct {
	out  *outgoing
	due  time.Time
	tag  uint64
	acks *acks
}

func newWarden(t *Transport) *warden {
	w := &warden{t: t, wake: make(chan struct{}, 1)}
	w.ctx, w.stop = context.WithCancel(t.ctx)
	t.work.Go(w.run)
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
	settled := newAcks(ch, wardenBatch, wardenBatch)
	defer settled.end()

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
		if err := w.take(settled, deliveries); err != nil {
			if w.ctx.Err() == nil {
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
			w.hold(settled, &d)
		}
	}
}

var errCancelled = errors.New("the broker cancelled the consumer: the queue was deleted or lost its leader")

// take holds what comes. It returns nil when everything that the broker may send is held, none of it
// is due for a while, and there is memory for more.
func (w *warden) take(settled *acks, deliveries <-chan amqp.Delivery) error {
	assert := time.NewTicker(assertInterval)
	defer assert.Stop()
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return errCancelled
			}
			w.hold(settled, &d)
			if w.full() {
				return nil
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

func (w *warden) hold(settled *acks, d *amqp.Delivery) {
	out, due := w.t.topology.ladder.arrived(d)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.push(&waiting{out: out, due: due, tag: d.DeliveryTag, acks: settled})
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
	err := w.t.publisher.send(w.t.ctx, out)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range batch {
		switch {
		case x.out.confirmed && !x.out.unroutable:
			x.acks.ack(x.tag)
		case x.out.confirmed:
			w.unroutable(x)
		case !x.acks.isOver(): // else it comes again
			x.due = time.Now().Add(wardenRetry)
			w.push(x)
		}
	}
	if err != nil && w.t.ctx.Err() == nil {
		w.t.cfg.Logger.Error("leat: amqp: delayed messages are not confirmed and tried again", "err", err)
	}
}

// unroutable ends the way of a message that reached no queue at its time. A delayed publishing that
// no group wants is counted like any other; a redelivery is kept for the operator, because its
// group's queue was deleted. The caller holds w.mu.
func (w *warden) unroutable(x *waiting) {
	if x.out.exchange != "" {
		w.t.unroutable.Add(1)
		w.t.cfg.Logger.Warn("leat: amqp: a delayed message reached no group", "exchange", x.out.exchange,
			"key", x.out.key, "message_id", x.out.msg.MessageId)
		x.acks.ack(x.tag)
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
