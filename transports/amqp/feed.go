package amqp

import (
	"context"
	"fmt"
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

	// With order by key there is room for messages that wait behind one of their key while others pass,
	// and for acks that wait for those that go to the held ones.
	prefetchByKey    = 10
	minPrefetchByKey = 200

	// heldHere is the longest redelivery delay for which a delivery stays in this process.
	heldHere = 100 * time.Millisecond

	// crashPause is how long a copy of a message that was in a crash is kept before it is handed out:
	// what it is a copy of must be acked before it can crash this process as well.
	crashPause = 25 * time.Millisecond

	// strictKey is the one key of all messages in a strictly ordered group.
	strictKey = "\x00strict"
)

// feed is one subscription: what the broker delivered and nobody has taken yet, and who waits.
type feed struct {
	t        *Transport
	sub      driver.Subscription
	queues   []string
	prefetch int

	begin    sync.Once
	intake   context.Context // ends when the feed is closed
	stop     context.CancelFunc
	life     context.Context // ends when nothing of it is wanted any more
	end      context.CancelFunc
	released chan struct{} // closed when what was not handed out is given back
	release  func()

	mu      sync.Mutex
	closed  bool
	session *session
	ready   []*item
	takers  []chan *item        // consumers that wait, the last to come is served first
	lanes   map[string]keyLane  // key → what waits behind its head
	behind  int                 // how many those are
	held    map[*item]heldTimer // redeliveries that wait here
	twins   map[uint64]bool     // see repeats
	unseen  map[string]int      // message id → deliveries that a lost connection took back unseen
	out     int                 // handed out or being given back, and not settled

	doubtful map[int64]bool // places of held messages that were out when the connection was lost

	suspectOut bool // one of them may crash the process, and is alone for that

	own      *link // see isolate; guarded by the transport's mu
	bytes    *byteBudget
	failures int // of operations of this group over which the broker ended the connection; run's alone
}

// keyLane is a key of which messages are here, or held on the broker.
type keyLane struct {
	items  []*item // behind the head, and behind what is held of the key
	headed bool    // a message of the key is ready, handed out, or waits for its redelivery here
}

type heldTimer struct {
	timer *time.Timer
	due   time.Time
}

func newFeed(t *Transport, s driver.Subscription) *feed {
	f := &feed{
		t: t, sub: s, queues: t.topology.queues(s), released: make(chan struct{}),
		lanes: make(map[string]keyLane), held: make(map[*item]heldTimer), unseen: make(map[string]int), twins: make(map[uint64]bool),
	}
	f.prefetch, f.bytes = t.cfg.PrefetchCount, newByteBudget(t.cfg.PrefetchBytes)
	switch {
	case s.Order == driver.OrderedStrictly:
		f.prefetch = 1 // one at a time, and nothing is counted as delivered that was not
	case f.prefetch == 0:
		each, least := prefetchPerWorker, minPrefetch
		if s.Order == driver.OrderedByKey {
			each, least = prefetchByKey, minPrefetchByKey
		}
		f.prefetch = min(max(each*s.Concurrency, least), maxPrefetch)
	}
	f.intake, f.stop = context.WithCancel(t.ctx)
	f.life, f.end = context.WithCancel(t.ctx)
	f.release = sync.OnceFunc(func() { close(f.released) })
	return f
}

// Next blocks until the broker delivers a message. While the connection is lost it waits.
func (f *feed) Next(ctx context.Context) (*driver.Delivery, error) {
	f.begin.Do(f.start)
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, driver.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		f.mu.Unlock()
		return nil, err
	}
	if it := f.pop(); it != nil {
		f.mu.Unlock()
		return it.handOut(), nil
	}
	taker := make(chan *item, 1)
	f.takers = append(f.takers, taker)
	f.mu.Unlock()

	select {
	case it := <-taker:
		return taken(it)
	case <-ctx.Done():
	}
	if f.stopWaiting(taker) {
		return nil, ctx.Err()
	}
	return taken(<-taker) // it came at the same time
}

func taken(it *item) (*driver.Delivery, error) {
	if it == nil {
		return nil, driver.ErrClosed
	}
	return it.handOut(), nil
}

// stopWaiting reports whether the consumer was still waiting.
func (f *feed) stopWaiting(taker chan *item) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.Index(f.takers, taker)
	if i < 0 {
		return false
	}
	f.takers = slices.Delete(f.takers, i, i+1)
	return true
}

// pop takes the next message out, nil where none may be. The caller holds f.mu.
func (f *feed) pop() *item {
	if len(f.ready) == 0 || !f.mayHandOut(f.ready[0]) {
		return nil
	}
	it := f.ready[0]
	f.ready[0], f.ready = nil, f.ready[1:]
	f.takeOut()
	f.suspectOut = it.key != "" && it.suspect()
	return it
}

// dispatch hands messages to consumers that wait, the last to come first. The caller holds f.mu.
func (f *feed) dispatch() {
	for n := len(f.takers); n > 0; n-- {
		it := f.pop()
		if it == nil {
			return
		}
		f.takers[n-1] <- it
		f.takers[n-1] = nil
		f.takers = f.takers[:n-1]
	}
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
	it := &item{feed: f, session: s, raw: raw, queue: queue}
	it.attempts, it.crashes = handOvers(raw, queue)
	f.correct(it)
	switch f.sub.Order {
	case driver.OrderedByKey:
		it.unpack()
		it.key = shortKey(driver.PartitionKey(&it.msg))
	case driver.OrderedStrictly:
		it.key = strictKey
	default:
		s.judge(it)
	}
	if f.mustCount(it) {
		f.count(it)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sub.Order != driver.Unordered && s.repeats.again(raw) {
		s.held.takenBack()
		return
	}
	if it.key != "" {
		f.trust(it)
		if s.held.has(it) {
			s.acks.ack(raw.DeliveryTag)
			return
		}
	}
	switch {
	case f.closed:
		f.ready = append(f.ready, it) // it is given back with the others
	case it.key == "" && it.raw.Headers[headerCrashes] != nil:
		f.hold(it, crashPause)
	default:
		f.enter(it)
	}
}

// correct takes off the count what the broker counted as delivered and nobody here has seen.
func (f *feed) correct(it *item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := min(f.unseen[it.raw.MessageId], it.crashes)
	it.unseen = n
	it.attempts -= n
	it.crashes -= n
	delete(f.unseen, it.raw.MessageId)
}

// trust takes the broker's count of crashes for what it is worth in an ordered group, where all that
// was fetched is counted with the message that crashed the process. A suspect is handed out alone
// there, so that after a crash it is the first to come again: of all others, no more crashes are
// believed than it takes to be suspect. The caller holds f.mu.
func (f *feed) trust(it *item) {
	s := it.session
	if s.begun && it.crashes > suspicion {
		it.attempts -= it.crashes - suspicion
		it.crashes = suspicion
	}
	s.begun = true
}

// mayHandOut keeps a suspect alone, and everything where it is not sure that this process leads the group. The
// caller holds f.mu.
func (f *feed) mayHandOut(it *item) bool {
	switch {
	case it.session.held != nil && !it.session.held.token.valid():
		return false
	case it.key == "":
		return true
	case it.suspect():
		return f.out == 0 && !f.suspectOut
	default:
		return !f.suspectOut
	}
}

// mustCount reports whether a hand-over has to be counted in the header: a classic queue tells that
// a message came before, and not how often. In an ordered group that would cost it its place; there
// it counts as one.
func (f *feed) mustCount(it *item) bool {
	return it.crashes > 0 && it.raw.Redelivered && f.sub.Order == driver.Unordered &&
		(f.t.cfg.QueueType == Classic || f.t.topology.watermill())
}

// count puts the message to the end of its queue, with the count in its header.
func (f *feed) count(it *item) {
	f.mu.Lock()
	f.takeOut()
	f.mu.Unlock()
	f.t.background(func(ctx context.Context) { f.move(ctx, it, it.attempts, 0) })
}

// enter makes a message ready, or puts it behind the head of its key. The caller holds f.mu.
func (f *feed) enter(it *item) {
	if it.key != "" && !it.heads {
		if lane, taken := f.lanes[it.key]; taken {
			lane.items = append(lane.items, it)
			f.lanes[it.key] = lane
			f.behind++
			it.session.held.relieve(it.key)
			return
		}
		f.lanes[it.key] = keyLane{headed: true}
		it.heads = true
	}
	f.ready = append(f.ready, it)
	f.dispatch()
}

// finish ends a delivery and lets the next of its key go.
func (f *feed) finish(it *item) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settled(it)
}

// settled is finish where the caller holds f.mu.
func (f *feed) settled(it *item) {
	f.leave(it)
	if it.heads {
		f.advance(it.key)
	}
	f.dispatch()
}

// leave counts a delivery as settled. The caller holds f.mu.
func (f *feed) leave(it *item) {
	f.out--
	f.t.active.Add(-1)
	if it.key != "" && it.suspect() {
		// Its ack must be on its way before the next can crash the process.
		time.AfterFunc(crashPause, f.suspectDone)
	}
	if f.closed && f.out == 0 && f.session != nil {
		f.session.settled()
	}
}

// suspectDone lets others be handed out again.
func (f *feed) suspectDone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.suspectOut = false
	f.dispatch()
}

// advance hands a key to the message behind its head: one that is held before one that is here. The
// caller holds f.mu.
func (f *feed) advance(key string) {
	lane := f.lanes[key]
	lane.headed = false
	f.lanes[key] = lane
	if f.session != nil && f.session.held.resume(key) {
		return
	}
	if len(lane.items) == 0 {
		delete(f.lanes, key)
		return
	}
	next := lane.items[0]
	lane.items[0] = nil
	f.behind--
	f.lanes[key] = keyLane{items: lane.items[1:], headed: true}
	next.heads = true
	f.ready = append(f.ready, next)
}

// back brings a delivery again, with so many hand-overs counted.
func (f *feed) back(it *item, attempts int, after time.Duration) error {
	if it.session.isOver() {
		f.finish(it)
		return it.late()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.closed && after <= heldHere:
		f.leave(it)
		f.hold(it.again(attempts), after)
		f.dispatch()
	case it.key == "":
		f.t.background(func(ctx context.Context) { f.move(ctx, it, attempts, after) })
	case after > heldHere || attempts > it.attempts:
		it.session.held.keep(it, attempts, after)
	default: // to its place in the queue, when the channel is closed: a nack would put it to the end
		f.leave(it)
	}
	return nil
}

// hold keeps a redelivery in this process. The caller holds f.mu.
func (f *feed) hold(it *item, after time.Duration) {
	if after <= 0 {
		f.ready = slices.Insert(f.ready, 0, it) // where it came from
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
	f.dispatch()
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
				"group", f.sub.Group, "message_id", driver.MessageID(&it.msg), "err", err)
		}
		it.session.acks.requeue(it.raw.DeliveryTag)
		f.mu.Lock()
		it.session.repeats.requeued++
		f.settled(it)
		f.mu.Unlock()
		return
	}
	_ = it.Ack() // late: then there are two, as after any lost connection
}

// purge forgets what an ended session had delivered and nobody has taken: it comes again.
func (f *feed) purge(s *session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	stale := func(it *item) bool { return it.session == s }
	var headless []string
	drop := func(it *item) {
		if it.heads {
			headless = append(headless, it.key)
		}
	}
	for it, h := range f.held {
		if stale(it) {
			h.timer.Stop()
			delete(f.held, it)
			drop(it)
		}
	}
	for _, it := range f.ready {
		if stale(it) {
			drop(it)
			f.notSeen(it)
		}
	}
	f.ready = slices.DeleteFunc(f.ready, stale)
	f.session = nil
	for key, lane := range f.lanes {
		for _, it := range lane.items {
			f.notSeen(it)
		}
		lane.items = slices.DeleteFunc(lane.items, stale)
		f.lanes[key] = lane
		if !lane.headed { // it was held
			headless = append(headless, key)
		}
	}
	f.behind = 0
	for _, lane := range f.lanes {
		f.behind += len(lane.items)
	}
	for _, key := range headless {
		f.advance(key)
	}
	f.dispatch()
}

// notSeen remembers a message that goes back without having been handed out, as long as it may come
// to this process again. The caller holds f.mu.
func (f *feed) notSeen(it *item) {
	if it.seen || it.raw.MessageId == "" {
		return
	}
	if len(f.unseen) >= maxPrefetch {
		clear(f.unseen)
	}
	f.unseen[it.raw.MessageId] = it.unseen + 1
}

// link is the connection that the feed consumes by. Ordered groups share one that also publishes their
// held messages, so that both end at once.
func (f *feed) link() *link {
	f.t.mu.Lock()
	own := f.own
	f.t.mu.Unlock()
	if own != nil {
		return own
	}
	if f.sub.Order == driver.Unordered {
		return f.t.consuming
	}
	return f.t.ordering()
}

// parks reports whether the messages of a key wait behind a poisoned one.
func (f *feed) parks() bool { return f.sub.Park }

// shut stops taking in.
func (f *feed) shut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, taker := range f.takers {
		close(taker)
	}
	f.takers = nil
	if f.session == nil {
		f.release()
	}
	f.stop()
}

// Close stops taking in and gives back what was not handed out. It waits for that as long as ctx
// allows. In an ordered group, and with one worker, that happens when what is out is settled.
func (f *feed) Close(ctx context.Context) error {
	f.shut()
	select {
	case <-f.released:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("amqp: close feed of group %q: %w", f.sub.Group, context.Cause(ctx))
	}
}

// abandon ends the session whatever is still out.
func (f *feed) abandon() { f.end() }
