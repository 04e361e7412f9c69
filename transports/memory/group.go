package memory

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/waitcounter"
	"github.com/leatbus/leat/transports/internal/delayqueue"
	"github.com/leatbus/leat/transports/internal/ring"
	"github.com/leatbus/leat/transports/internal/waiting"
)

// item is a message in one group. The message itself is shared between groups and never changed.
type item struct {
	msg       *message.Message
	topic     string
	key       string // messages of one key are ordered; "" if the group is unordered
	attempts  int    // deliveries that count
	since     time.Time
	history   driver.History // its failures
	due       time.Time
	delayed   bool      // was published with a delay
	capacity  *capacity // the capacity that it has acquired
	size      int       // its bytes in that
	seq       int       // ascends in the order of publishing; does not change in a replay
	head      bool      // is the head of its key
	parked    bool      // waits behind a poisoned message
	fence     uint64    // of its last delivery
	untracked bool      // the bus that published it does not track it any more
}

// itemOverhead is the approximate memory of a message in a group without its texts and its payload, in bytes.
const itemOverhead = 512

// newItem returns an item that is in no group yet. Its size includes the headers.
func newItem(msg *message.Message, topic string) item {
	size := len(msg.UUID) + len(msg.Payload) + itemOverhead
	for key, value := range msg.Metadata {
		size += len(key) + len(value)
	}
	return item{msg: msg, topic: topic, size: size}
}

// group is a consumer group. mu guards everything below it, including what the fields point to. All methods of keyQueues,
// capacity and poisonStore are called with mu held. Several groups are always locked in the order of their numbers.
type group struct {
	name   string
	number int
	cfg    Config
	busy   *waitcounter.Counter // messages that are neither settled nor parked, over all groups

	mu         sync.Mutex
	topics     []string
	order      driver.Order
	park       bool
	receivers  int
	joined     uint64 // receivers so far
	onPark     map[*receiver]func(*message.Message)
	closed     bool
	seq        int // the last seq that was assigned
	capacities [capacities]capacity
	unsettled  int // messages that are neither settled nor parked
	out        int // delivered and not settled
	ready      ring.Ring[*item]
	keys       keyQueues
	delayed    *delayqueue.Queue[*item]
	waiting    *waiting.Calls[*item]
	poison     poisonStore
}

func newGroup(name string, number int, cfg Config, busy *waitcounter.Counter) *group {
	g := &group{name: name, number: number, cfg: cfg, busy: busy, onPark: make(map[*receiver]func(*message.Message))}
	g.keys.init(g.enter, g.setParked)
	g.delayed = delayqueue.New(&g.mu, g.enter)
	g.waiting = waiting.New(&g.mu, g.take)
	g.poison.limit = cfg.PoisonBytes
	for i, what := range [capacities]string{"that wait or are handled", "published with a delay", "behind poisoned messages"} {
		g.capacities[i] = capacity{what: what, limit: cfg.Queue, bound: cfg.Bytes}
	}
	return g
}

// join sets the group's topics and order to those of a subscription. It returns an error if other consumers have different ones.
func (g *group) join(s driver.Subscription) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.receivers > 0 {
		if err := s.CheckAgrees(g.topics, g.order); err != nil {
			return err
		}
	}
	g.receivers++
	g.joined++
	g.topics, g.order = slices.Clone(s.Topics), s.Order
	if g.cfg.Queue > 0 {
		for i := range g.capacities {
			g.capacities[i].limit = max(g.cfg.Queue, 2*s.Concurrency)
			g.capacities[i].wake()
		}
	}
	if g.park = s.Park; !g.park && g.keys.releaseAll() {
		g.recheckPublishers()
	}
	return nil
}

func (g *group) leave(r *receiver) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.receivers--
	delete(g.onPark, r)
}

func (g *group) notifyOnPark(r *receiver, fn func(*message.Message)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.onPark[r] = fn
}

// strictKey is the key of all messages in a strictly ordered group.
const strictKey = "\x00strict"

// orderKey returns the key under which the group orders the message, "" if it does not.
func (g *group) orderKey(msg *message.Message) string {
	switch g.order {
	case driver.OrderedByKey:
		return driver.PartitionKey(msg)
	case driver.OrderedStrictly:
		return strictKey
	default:
		return ""
	}
}

// countUnsettled adds n to the number of messages for which WaitIdle waits.
func (g *group) countUnsettled(n int) {
	g.unsettled += n
	g.busy.Add(int64(n))
}

// insert makes a message ready, or delays it.
func (g *group) insert(it *item) {
	it.key = g.orderKey(it.msg)
	if it.seq == 0 {
		it.seq = g.nextSeq()
	}
	if time.Until(it.due) > 0 {
		g.delayed.Push(it, it.due)
		return
	}
	g.enter(it)
}

func (g *group) nextSeq() int {
	g.seq++
	return g.seq
}

// enter makes a message ready, or puts it behind the head of its key.
func (g *group) enter(it *item) {
	if it.key != "" && !it.head && !g.keys.enter(it) {
		return
	}
	g.ready.PushBack(it)
	g.waiting.Wake()
}

// take removes the next message from the ready ones and returns it.
func (g *group) take() (*item, bool) {
	it, ok := g.ready.PopFront()
	if ok {
		g.out++
		if g.order != driver.Unordered {
			it.fence = g.joined
		}
	}
	return it, ok
}

// giveBack makes a delivered message ready again, or delays it.
func (g *group) giveBack(it *item, after time.Duration) {
	g.out--
	switch {
	case g.closed:
		g.forget(it)
	case after > 0:
		it.due = time.Now().Add(after)
		g.delayed.Push(it, it.due)
	default:
		g.ready.PushFront(it) // in front, to keep the order
		g.waiting.Wake()
	}
}

// done removes a delivered message from the group, and makes the next message of its key ready.
func (g *group) done(it *item) {
	g.out--
	g.forget(it)
	if it.key != "" {
		g.keys.done(it.key)
	}
}

// forget releases the capacity of a message.
func (g *group) forget(it *item) {
	g.countUnsettled(-1)
	it.capacity.release(it)
}

// setParked marks a message as parked or not. WaitIdle and the bus do not wait for a parked message, because it waits for an
// operator.
func (g *group) setParked(it *item, parked bool) {
	if it.parked == parked || g.closed {
		return
	}
	it.parked = parked
	if !parked {
		g.countUnsettled(1)
		return
	}
	g.countUnsettled(-1)
	if !it.untracked {
		it.untracked = true
		for _, notify := range g.onPark {
			notify(it.msg)
		}
	}
	to := &g.capacities[parkedCapacity]
	if from := it.capacity; from != to && to.fits(1, it.size, 1) {
		to.acquire(it)
		from.release(it)
	}
}

// hold makes a poisoned message hold back the later ones of its key, if the group parks.
func (g *group) hold(x *poisoned, key string) {
	if !g.park || key == "" {
		return
	}
	x.key = key
	g.keys.hold(key, x.seq)
	g.recheckPublishers()
}

// releaseHold undoes hold.
func (g *group) releaseHold(x *poisoned) {
	if g.keys.release(x.key, x.seq) {
		g.recheckPublishers()
	}
}

// recheckPublishers wakes the blocked publishers, because messages of a key need another capacity now.
func (g *group) recheckPublishers() {
	g.capacities[waitingCapacity].wakeAll()
	g.capacities[parkedCapacity].wakeAll()
}

// capacityFor returns the capacity that the item must acquire.
func (g *group) capacityFor(it *item) *capacity {
	switch {
	case it.delayed:
		return &g.capacities[delayedCapacity]
	case g.keys.parks(g.orderKey(it.msg), it.seq):
		return &g.capacities[parkedCapacity]
	default:
		return &g.capacities[waitingCapacity]
	}
}

// next blocks until there is a message.
func (g *group) next(ctx context.Context, done <-chan struct{}) (*driver.Delivery, error) {
	it, err := g.waiting.Next(ctx, done)
	if err != nil {
		return nil, err
	}
	return g.deliver(it), nil
}

// backlog returns how many messages can be delivered now, and how many wait for a time or an operator.
func (g *group) backlog() (now, later int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	later = g.delayed.Len() + g.keys.behindDelayed(g.delayed.All())
	return g.unsettled - later, later + g.keys.parked
}

func (g *group) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.delayed.Close()
	g.waiting.Close()
	for i := range g.capacities {
		g.capacities[i].wakeAll()
	}
	g.busy.Add(-int64(g.unsettled - g.out)) // messages that were not delivered will never be settled
}
