package memory

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/tally"
)

// strictKey is the one key of all messages in a strictly ordered group.
const strictKey = "\x00strict"

// item is a message in one group's queue. The message is shared between groups and never changed.
type item struct {
	msg      *message.Message
	topic    string
	key      string // order is kept within it; "" where none is asked for
	attempts int    // hand-overs that counted
	since    time.Time
	history  driver.History // its failures
	due      time.Time
	delayed  bool     // it was published with a delay
	account  *account // that it is charged to
	size     int      // bytes that it is charged with
	place    int      // ascending in the order of publishing; a replay keeps it
	heads    bool     // it is the head of its lane
	parked   bool     // it waits behind a poisoned one
	told     bool     // the bus that published it has closed its account of it
}

// itemOverhead is about what a message takes in a queue beside its texts and its payload, in bytes.
const itemOverhead = 512

// newItem makes an item that no queue has yet. Headers are charged, as there may be little else.
func newItem(msg *message.Message, topic string) item {
	size := len(msg.UUID) + len(msg.Payload) + itemOverhead
	for key, value := range msg.Metadata {
		size += len(key) + len(value)
	}
	return item{msg: msg, topic: topic, size: size}
}

// queue is one group: what waits, who waits for it, and what is held for later.
type queue struct {
	group  string
	number int // who locks several queues locks them in the order of their numbers
	cfg    Config
	busy   *tally.Tally

	mu       sync.Mutex
	topics   []string
	order    driver.Order
	park     bool
	feeds    int
	watchers map[*feed]func(*message.Message) // who wants to know what is parked
	closed   bool
	places   int // given so far
	accounts [accounts]account
	size     int // messages that are neither settled nor parked
	out      int // handed out and not settled
	ready    ring[*item]
	lanes    map[string]*lane // by key
	later    laterHeap
	timer    *time.Timer
	takers   []chan *item // consumers that wait, the last to come is served first
	waking   bool         // one of them was given a message and does not run yet
	poison   []*poisoned
	parcels  parcels
	poisoned int // bytes in poison
	nextID   int
}

func newQueue(group string, number int, cfg Config, busy *tally.Tally) *queue {
	q := &queue{
		group: group, number: number, cfg: cfg, busy: busy,
		lanes: make(map[string]*lane), watchers: make(map[*feed]func(*message.Message)),
	}
	for i, what := range [accounts]string{"that wait or are handled", "published with a delay", "behind poisoned messages"} {
		q.accounts[i] = account{what: what, limit: cfg.Queue, bound: cfg.Bytes}
	}
	return q
}

// unsettled adds to the number of messages that somebody may wait for. The caller holds q.mu.
func (q *queue) unsettled(n int) {
	q.size += n
	q.busy.Add(int64(n))
}

// forgetItem ends a message's life in the queue. The caller holds q.mu.
func (q *queue) forgetItem(it *item) {
	q.unsettled(-1)
	it.account.release(it)
}

// adopt takes a subscription's topics and order, unless consumers with others are there.
func (q *queue) adopt(s driver.Subscription) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.feeds > 0 && (q.order != s.Order || !slices.Equal(q.topics, s.Topics)) {
		return fmt.Errorf("group %q is subscribed to %v (%s) already, and now to %v (%s); consumers of one group must agree, "+
			"so give one of them another name", s.Group, q.topics, q.order, s.Topics, s.Order)
	}
	q.feeds++
	q.topics, q.order = slices.Clone(s.Topics), s.Order
	if q.cfg.Queue > 0 {
		for i := range q.accounts {
			q.accounts[i].limit = max(q.cfg.Queue, 2*s.Concurrency)
			q.accounts[i].wake()
		}
	}
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
	case driver.OrderedByKey:
		return driver.PartitionKey(msg)
	case driver.OrderedStrictly:
		return strictKey
	default:
		return ""
	}
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

// next waits for a message.
func (q *queue) next(ctx context.Context, done <-chan struct{}) (*driver.Delivery, error) {
	select {
	case <-done:
		return nil, driver.ErrClosed
	default:
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil, driver.ErrClosed
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

	err := driver.ErrClosed
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
func (q *queue) taken(it *item) (*driver.Delivery, error) {
	if it == nil {
		return nil, driver.ErrClosed
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
	for i := range q.accounts {
		q.accounts[i].wakeAll()
	}
	q.busy.Add(-int64(q.size - q.out)) // nobody will settle what was not handed out
}
