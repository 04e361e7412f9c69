package amqp

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/waiting"
)

const (
	// prefetchPerWorker and minPrefetch: enough to keep workers busy while acks are collected.
	prefetchPerWorker = 5
	minPrefetch       = 20
	maxPrefetch       = 1<<16 - 1

	// heldHere is the longest redelivery delay for which a delivery stays in this process.
	heldHere = 100 * time.Millisecond

	// crashPause is how long a copy of a message that was in a crash is kept before it is handed out:
	// what it is a copy of must be acked before it can crash this process as well.
	crashPause = 25 * time.Millisecond
)

// intake is the life of a subscription: it begins at the first Next, and ends in two steps.
type intake struct {
	t   *Transport
	sub driver.Subscription

	begin    sync.Once
	open     context.Context // ends when the subscription is closed
	stop     context.CancelFunc
	life     context.Context // ends when nothing of it is wanted any more
	end      context.CancelFunc
	released chan struct{} // closed when what was not handed out is given back
	release  func()
}

func newIntake(t *Transport, s driver.Subscription) *intake {
	in := &intake{t: t, sub: s, released: make(chan struct{})}
	in.open, in.stop = context.WithCancel(t.ctx)
	in.life, in.end = context.WithCancel(t.ctx)
	in.release = sync.OnceFunc(func() { close(in.released) })
	return in
}

// await waits until what was not handed out is given back.
func (in *intake) await(ctx context.Context) error {
	select {
	case <-in.released:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("amqp: close feed of group %q: %w", in.sub.Group, context.Cause(ctx))
	}
}

// abandon ends the session whatever is still out.
func (in *intake) abandon() { in.end() }

// feed is a subscription without an order: what the broker delivered and nobody has taken yet, and who waits.
type feed struct {
	*intake
	queues   []string
	prefetch int

	mu      sync.Mutex
	closed  bool
	session *session
	ready   []*item
	calls   *waiting.Calls[*item]
	held    map[*item]heldTimer // redeliveries that wait here
	unseen  unseen
	out     int // handed out or being given back, and not settled

	own      *link // see isolate; guarded by the transport's mu
	bytes    *byteBudget
	failures int // of operations of this group over which the broker ended the connection; run's alone
}

type heldTimer struct {
	timer *time.Timer
	due   time.Time
}

func newFeed(t *Transport, s driver.Subscription) *feed {
	f := &feed{intake: newIntake(t, s), queues: t.topology.queues(s), held: make(map[*item]heldTimer), unseen: make(unseen)}
	f.prefetch, f.bytes = t.cfg.PrefetchCount, newByteBudget(t.cfg.PrefetchBytes)
	if f.prefetch == 0 {
		f.prefetch = min(max(prefetchPerWorker*s.Concurrency, minPrefetch), maxPrefetch)
	}
	f.calls = waiting.New(&f.mu, f.take)
	return f
}

// Next blocks until the broker delivers a message. While the connection is lost it waits.
func (f *feed) Next(ctx context.Context) (*driver.Delivery, error) {
	f.begin.Do(f.start)
	it, err := f.calls.Next(ctx, nil)
	if err != nil {
		return nil, err
	}
	return it.handOut(), nil
}

// take takes the next message out. The caller holds f.mu.
func (f *feed) take() (*item, bool) {
	if len(f.ready) == 0 {
		return nil, false
	}
	it := f.ready[0]
	f.ready[0], f.ready = nil, f.ready[1:]
	f.takeOut()
	return it, true
}

// takeOut counts a delivery as out. The caller holds f.mu.
func (f *feed) takeOut() {
	f.out++
	f.t.active.Add(1)
}

// start begins consuming, at the first Next.
func (f *feed) start() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.t.work.Go(f.run)
}

// arrive takes a delivery in. It never blocks.
func (f *feed) arrive(s *session, queue string, raw *amqp.Delivery) {
	distrust(raw)
	if raw.Headers[headerNote] != nil { // from a time when the group was ordered
		s.acks.ack(raw.DeliveryTag)
		return
	}
	it := &item{feed: f, session: s}
	it.receive(f.t, f.sub.Group, queue, raw)
	f.mu.Lock()
	f.unseen.correct(&it.received)
	f.mu.Unlock()
	s.judge(it)
	if f.mustCount(it) {
		f.count(it)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		f.ready = append(f.ready, it) // it is given back with the others
	case it.raw.Headers[headerCrashes] != nil:
		f.hold(it, crashPause)
	default:
		f.ready = append(f.ready, it)
		f.calls.Wake()
	}
}

// mustCount reports whether a hand-over has to be counted in the header: a classic queue tells that
// a message came before, and not how often.
func (f *feed) mustCount(it *item) bool {
	return it.crashes > 0 && it.raw.Redelivered && (f.t.cfg.QueueType == Classic || f.t.topology.watermill())
}

// count puts the message to the end of its queue, with the count in its header.
func (f *feed) count(it *item) {
	f.mu.Lock()
	f.takeOut()
	f.mu.Unlock()
	f.t.background(func(ctx context.Context) { f.move(ctx, it, it.attempts, 0) })
}

// finish ends a delivery.
func (f *feed) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leave()
}

// leave counts a delivery as settled. The caller holds f.mu.
func (f *feed) leave() {
	f.out--
	f.t.active.Add(-1)
	if f.closed && f.out == 0 && f.session != nil {
		f.session.settled()
	}
}

// back brings a delivery again, with so many hand-overs counted.
func (f *feed) back(it *item, attempts int, after time.Duration) error {
	if it.session.isOver() {
		f.finish()
		return it.late()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed && after <= heldHere {
		f.leave()
		f.hold(it.again(attempts), after)
		return nil
	}
	f.t.background(func(ctx context.Context) { f.move(ctx, it, attempts, after) })
	return nil
}

// hold keeps a redelivery in this process. The caller holds f.mu.
func (f *feed) hold(it *item, after time.Duration) {
	if after <= 0 {
		f.ready = slices.Insert(f.ready, 0, it) // where it came from
		f.calls.Wake()
		return
	}
	f.held[it] = heldTimer{time.AfterFunc(after, func() { f.wake(it) }), time.Now().Add(after)}
}

// wake makes a held message ready, unless its session has ended meanwhile or the feed was closed.
func (f *feed) wake(it *item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, waits := f.held[it]; !waits {
		return
	}
	delete(f.held, it)
	f.ready = append(f.ready, it)
	f.calls.Wake()
}

// move puts a copy of the message where it waits for its redelivery, and acks the delivery when the
// copy is confirmed. Where that fails, the delivery goes back to its queue as it is.
func (f *feed) move(ctx context.Context, it *item, attempts int, after time.Duration) {
	msg, room := it.copy(attempts), brokersRoom
	o := &outgoing{key: it.queue} // by way of the default exchange
	if after > 0 {
		o, room = f.t.topology.redelivery(f.sub, it.queue, after, msg)
	}
	o.msg = msg
	fit(&o.msg, f.t.publishing.frame()-room)
	if err := f.t.deliver(ctx, o); err != nil {
		if ctx.Err() == nil {
			f.t.cfg.Logger.Error("leat: amqp: redelivery not confirmed; the message comes again at once",
				"group", f.sub.Group, "message_id", driver.MessageID(&it.msg), "error", err)
		}
		it.session.acks.requeue(it.raw.DeliveryTag)
		f.finish()
		return
	}
	_ = it.Ack() // late: then there are two, as after any lost connection
}

// purge forgets what an ended session had delivered and nobody has taken: it comes again.
func (f *feed) purge(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for it, h := range f.held {
		if it.session == s {
			h.timer.Stop()
			delete(f.held, it)
		}
	}
	f.ready = slices.DeleteFunc(f.ready, func(it *item) bool {
		if it.session == s {
			f.unseen.add(&it.received)
		}
		return it.session == s
	})
	f.session = nil
}

// link is the connection that the feed consumes by.
func (f *feed) link() *link {
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	if f.own != nil {
		return f.own
	}
	return f.t.consuming
}

// shut stops taking in.
func (f *feed) shut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.calls.Close()
	if f.session == nil {
		f.release()
	}
	f.stop()
}

// Close stops taking in and gives back what was not handed out. It waits for that as long as ctx
// allows. With one worker, that happens when what is out is settled.
func (f *feed) Close(ctx context.Context) error {
	f.shut()
	return f.await(ctx)
}
