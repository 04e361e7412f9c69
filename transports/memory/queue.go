package memory

import (
	"container/heap"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/tally"
)

// handlerOverdraft is how many times its bound a queue takes from publishing handlers.
const handlerOverdraft = 8

// fullNotice is how long a publisher waits for a full group before the log says so.
const fullNotice = 5 * time.Second

// strictKey is the one key of all messages in a strictly ordered group.
const strictKey = "\x00strict"

// item is a message in one group's queue. The message is shared between groups and never changed.
type item struct {
	msg      *message.Message
	topic    string
	key      string // order is kept within it; "" where none is asked for
	attempts int    // hand-overs that counted
	since    time.Time
	failed   time.Time // when its handler first failed with it
	due      time.Time
	place    int  // ascending in the order of publishing; a replay keeps it
	heads    bool // it is the head of its lane
	parked   bool // it waits behind a poisoned one, and takes no place in the group
	told     bool // the bus that published it has closed its account of it
}

// queue is one group: what waits, who waits for it, and what is held for later.
type queue struct {
	group string
	cfg   Config
	busy  *tally.Tally

	mu       sync.Mutex
	topics   []string
	order    bus.Order
	park     bool
	feeds    int
	watchers map[*feed]func(*message.Message) // who wants to know what is parked
	closed   bool
	places   int // given so far
	size     int // messages that hold a place
	bytes    int
	out      int // handed out and not settled
	ready    ring[*item]
	lanes    map[string]*lane // by key
	later    laterHeap
	timer    *time.Timer
	takers   []chan *item     // consumers that wait, the last to come is served first
	waking   bool             // one of them was given a message and does not run yet
	givers   ring[*reserving] // publishers that wait, first come first served
	poison   []*poisoned
	parcels  parcels
	poisoned int // bytes in poison
	parked   int // bytes that are parked
	nextID   int
}

// reserving is a publisher that waits for room.
type reserving struct {
	size      int
	overdraft int
	granted   chan error
	gone      bool
}

func newQueue(group string, cfg Config, busy *tally.Tally) *queue {
	return &queue{group: group, cfg: cfg, busy: busy, lanes: make(map[string]*lane), watchers: make(map[*feed]func(*message.Message))}
}

// adopt takes a subscription's topics and order, unless consumers with others are there.
func (q *queue) adopt(s bus.Subscription) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.feeds > 0 && (q.order != s.Order || !slices.Equal(q.topics, s.Topics)) {
		return fmt.Errorf("group %q is subscribed to %v (%s) already, and now to %v (%s); consumers of one group must agree, "+
			"so give one of them another name", s.Group, q.topics, q.order, s.Topics, s.Order)
	}
	q.feeds++
	q.topics, q.order = slices.Clone(s.Topics), s.Order
	q.cfg.Queue = max(q.cfg.Queue, 2*s.Concurrency)
	if q.park = s.Park; !q.park {
		q.letAllGo()
	}
	return nil
}

func (q *queue) leave(f *feed) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.feeds--
	delete(q.watchers, f)
}

func (q *queue) tell(f *feed, fn func(*message.Message)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.watchers[f] = fn
}

// orderKey is the key within which this group keeps the message's order. The caller holds q.mu.
func (q *queue) orderKey(msg *message.Message) string {
	switch q.order {
	case bus.OrderedByKey:
		return bus.PartitionKey(msg)
	case bus.OrderedStrictly:
		return strictKey
	default:
		return ""
	}
}

// reserve takes a place for a message of that size, and waits for it as long as ctx allows.
func (q *queue) reserve(ctx context.Context, size, overdraft int) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return bus.ErrClosed
	}
	if q.admits(size, overdraft) {
		q.occupy(size)
		q.mu.Unlock()
		return nil
	}
	r := &reserving{size: size, overdraft: overdraft, granted: make(chan error, 1)}
	q.givers.pushBack(r)
	q.mu.Unlock()

	patience := time.NewTimer(fullNotice)
	defer patience.Stop()
	for waiting := true; waiting; {
		select {
		case err := <-r.granted:
			return err
		case <-patience.C:
			q.warnFull()
		case <-ctx.Done():
			waiting = false
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case err := <-r.granted: // granted meanwhile
		return err
	default:
		r.gone = true
		return fmt.Errorf("group %q is full (%d messages, %d bytes): %w", q.group, q.size, q.bytes, context.Cause(ctx))
	}
}

// warnFull says why publishers wait. Messages behind one that waits for its next try fill a group too.
func (q *queue) warnFull() {
	q.mu.Lock()
	defer q.mu.Unlock()
	behind := 0
	for _, l := range q.lanes {
		behind += l.waiting.len()
	}
	q.cfg.Logger.Warn("leat: publishers wait for a full group; its handler is slow, or messages wait for their next try",
		"group", q.group, "messages", q.size, "bytes", q.bytes, "in_flight", q.out, "delayed", len(q.later), "behind_their_key", behind)
}

// admits reports whether a publisher may have a place without waiting: there is room, and nobody has
// waited longer. Handlers go before.
func (q *queue) admits(size, overdraft int) bool {
	return q.fits(size, overdraft) && (overdraft > 1 || q.givers.len() == 0)
}

func (q *queue) fits(size, overdraft int) bool {
	return q.size < q.cfg.Queue*overdraft && (q.bytes+size <= q.cfg.Bytes*overdraft || q.size == 0)
}

func (q *queue) occupy(size int) {
	q.size++
	q.bytes += size
	q.busy.Add(1)
}

// release gives a place back that no message took.
func (q *queue) release(size int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.vacate(size)
}

// vacate frees a message's place and lets publishers in that wait for it.
func (q *queue) vacate(size int) {
	q.size--
	q.bytes -= size
	q.busy.Add(-1)
	for {
		r, ok := q.givers.front()
		switch {
		case !ok:
			return
		case r.gone:
			q.givers.popFront()
		case q.fits(r.size, r.overdraft):
			q.givers.popFront()
			q.occupy(r.size)
			r.granted <- nil
		default:
			return
		}
	}
}

// push queues a message whose place is reserved.
func (q *queue) push(it *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.vacate(len(it.msg.Payload))
		return
	}
	q.insert(it)
}

// offer queues a message if there is room and nobody waits for it.
func (q *queue) offer(it *item, overdraft int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := len(it.msg.Payload)
	if q.closed || !q.admits(size, overdraft) {
		return false
	}
	q.occupy(size)
	q.insert(it)
	return true
}

// insert makes a message ready, or holds it for its time. The caller holds q.mu.
func (q *queue) insert(it *item) {
	it.key = q.orderKey(it.msg)
	if it.place == 0 {
		q.places++
		it.place = q.places
	}
	if !it.due.IsZero() && time.Until(it.due) > 0 {
		q.hold(it)
		return
	}
	q.enter(it)
}

// enter makes a message ready, or lets it wait in its lane.
func (q *queue) enter(it *item) {
	if it.key != "" && !it.heads && !q.lead(it) {
		return
	}
	if !q.handOver(it) {
		q.ready.pushBack(it)
	}
}

// handOver gives a message to a consumer that waits, but wakes one at a time: whoever wakes up wakes the
// next if there is more to do. A burst is so handled by as many consumers as it takes, and costs its
// publisher one wake-up.
func (q *queue) handOver(it *item) bool {
	n := len(q.takers)
	if n == 0 || q.waking {
		return false
	}
	taker := q.takers[n-1]
	q.takers[n-1] = nil
	q.takers = q.takers[:n-1]
	q.out++
	q.waking = true
	taker <- it
	return true
}

// hold keeps a message for later.
func (q *queue) hold(it *item) {
	heap.Push(&q.later, it)
	if q.later[0] == it {
		q.arm()
	}
}

// arm sets the timer to the earliest message that waits for its time.
func (q *queue) arm() {
	if q.timer != nil {
		q.timer.Stop()
	}
	if len(q.later) > 0 && !q.closed {
		q.timer = time.AfterFunc(time.Until(q.later[0].due), q.promote)
	}
}

// promote makes ready whose time has come.
func (q *queue) promote() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	for len(q.later) > 0 && time.Until(q.later[0].due) <= 0 {
		q.enter(heap.Pop(&q.later).(*item))
	}
	q.arm()
}

// next waits for a message.
func (q *queue) next(ctx context.Context, done <-chan struct{}) (*bus.Delivery, error) {
	select {
	case <-done:
		return nil, bus.ErrClosed
	default:
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil, bus.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		q.mu.Unlock()
		return nil, err
	}
	if it, ok := q.ready.popFront(); ok {
		q.out++
		q.mu.Unlock()
		return q.handout(it), nil
	}
	taker := make(chan *item, 1)
	q.takers = append(q.takers, taker)
	q.mu.Unlock()

	err := bus.ErrClosed
	select {
	case it := <-taker:
		return q.taken(it)
	case <-ctx.Done():
		err = ctx.Err()
	case <-done:
	}
	if q.stopWaiting(taker) {
		return nil, err
	}
	return q.taken(<-taker) // it came at the same time
}

// taken is a consumer's awakening. It wakes the next for what came meanwhile.
func (q *queue) taken(it *item) (*bus.Delivery, error) {
	if it == nil {
		return nil, bus.ErrClosed
	}
	q.mu.Lock()
	q.waking = false
	if next, ok := q.ready.front(); ok && q.handOver(next) {
		q.ready.popFront()
	}
	q.mu.Unlock()
	return q.handout(it), nil
}

// stopWaiting reports whether the consumer was still waiting.
func (q *queue) stopWaiting(taker chan *item) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.takers, taker)
	if i < 0 {
		return false
	}
	q.takers = slices.Delete(q.takers, i, i+1)
	return true
}

// handout makes the delivery: the message is the handler's own, but for the payload's bytes.
func (q *queue) handout(it *item) *bus.Delivery {
	h := &handout{queue: q, item: it}
	h.msg.UUID = it.msg.UUID
	h.msg.Payload = it.msg.Payload
	h.msg.Metadata = maps.Clone(it.msg.Metadata)
	if h.msg.Metadata == nil {
		h.msg.Metadata = message.Metadata{}
	}
	if it.told {
		delete(h.msg.Metadata, bus.HeaderInstance)
	}
	d := &h.delivery
	d.Message = &h.msg
	d.Topic = it.topic
	d.Group = q.group
	d.Attempt = it.attempts + 1
	d.FirstSeen = it.since
	d.FailedSince = it.failed
	d.Settler = h
	return d
}

// handout is one delivery and its way back.
type handout struct {
	delivery bus.Delivery
	msg      message.Message
	queue    *queue
	item     *item
}

func (h *handout) Ack() error {
	q := h.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.done(h.item)
	return nil
}

func (h *handout) Redeliver(after time.Duration) error {
	h.item.attempts++
	return h.GiveBack(after)
}

func (h *handout) GiveBack(after time.Duration) error {
	q := h.queue
	h.item.failed = h.delivery.FailedSince
	q.mu.Lock()
	defer q.mu.Unlock()
	q.out--
	switch {
	case q.closed:
		q.vacate(len(h.item.msg.Payload))
	case after > 0:
		h.item.due = time.Now().Add(after)
		q.hold(h.item)
	case !q.handOver(h.item):
		q.ready.pushFront(h.item) // where it came from
	}
	return nil
}

func (h *handout) Poison(_ context.Context, fault bus.Fault) error {
	q := h.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.keep(h.item, fault); err != nil {
		return err
	}
	q.done(h.item)
	return nil
}

// done ends a message's life in the queue and lets the next of its key go.
func (q *queue) done(it *item) {
	q.out--
	q.vacate(len(it.msg.Payload))
	if it.key == "" {
		return
	}
	l := q.lanes[it.key]
	l.headed = false
	q.advance(it.key, l)
}

func (q *queue) backlog() (now, later int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	later = len(q.later)
	for _, it := range q.later {
		if l := q.lanes[it.key]; it.heads && l != nil {
			later += l.behind()
		}
	}
	for _, l := range q.lanes {
		if !l.headed {
			later += l.behind()
		}
	}
	return q.size - later, later + q.countParked()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if q.timer != nil {
		q.timer.Stop()
	}
	for _, taker := range q.takers {
		close(taker)
	}
	q.takers = nil
	for {
		r, ok := q.givers.popFront()
		if !ok {
			break
		}
		if !r.gone {
			r.granted <- bus.ErrClosed
		}
	}
	q.busy.Add(-int64(q.size - q.out)) // nobody will settle what was not handed out
}

// laterHeap orders messages by the time they wait for.
type laterHeap []*item

func (h laterHeap) Len() int           { return len(h) }
func (h laterHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h laterHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *laterHeap) Push(x any)        { *h = append(*h, x.(*item)) }
func (h *laterHeap) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return it
}
