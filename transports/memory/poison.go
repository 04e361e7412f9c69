package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// poisoned is a message in the poison queue, packed.
type poisoned struct {
	id    int // ascending
	data  []byte
	taken bool   // somebody replays or drops it
	place int    // its place in the group
	holds string // the key that it holds back, "" for none
}

// parcelOverhead is about what a poisoned message takes beside its data, in bytes.
const parcelOverhead = 64

// keep puts a message into the poison queue. The caller holds q.mu.
func (q *queue) keep(it *item, fault driver.Fault) error {
	headers := maps.Clone(it.msg.Metadata)
	if headers == nil {
		headers = message.Metadata{}
	}
	fault.Record(headers)
	x := &poisoned{place: it.place}
	if err := q.store(x, q.parcels.pack(it.msg.UUID, it.topic, headers, it.msg.Payload)); err != nil {
		return err
	}
	if q.park && it.key != "" {
		x.holds = it.key
		q.holdBack(it.key, it.place)
	}
	return nil
}

// store gives a poisoned message its data, and a new one its place. The caller holds q.mu.
func (q *queue) store(x *poisoned, data []byte) error {
	more := len(data) - len(x.data)
	if x.id == 0 {
		more += parcelOverhead
	}
	if q.poisoned+more > q.cfg.PoisonBytes {
		return fmt.Errorf("memory: group %q holds %d poisoned bytes: %w", q.group, q.poisoned, errPoisonFull)
	}
	q.poisoned += more
	x.data = data
	if x.id == 0 {
		q.nextID++
		x.id = q.nextID
		q.poison = append(q.poison, x)
	}
	return nil
}

// forget takes the messages out of the poison queue that are done with, and says how many.
func (q *queue) forget(done map[int]bool) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	var gone []*poisoned
	q.poison = slices.DeleteFunc(q.poison, func(x *poisoned) bool {
		if done[x.id] {
			q.poisoned -= len(x.data) + parcelOverhead
			gone = append(gone, x)
		}
		return done[x.id]
	})
	for _, x := range gone {
		q.letGo(x.holds, x.place)
	}
	return len(gone)
}

// claim finds a message that nobody else is replaying or dropping.
func (q *queue) claim(id string) (*poisoned, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	x, err := q.find(id)
	if err == nil && x.taken {
		return nil, q.notFound(id)
	}
	if err == nil {
		x.taken = true
	}
	return x, err
}

func (q *queue) open(x *poisoned) (topic string, msg *message.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.parcels.unpack(x.data)
}

func (q *queue) unclaim(x *poisoned) {
	q.mu.Lock()
	defer q.mu.Unlock()
	x.taken = false
}

// poisonQueue is a group's poison queue.
type poisonQueue struct {
	queue     *queue
	transport *Transport
}

func (p *poisonQueue) List(_ context.Context, after string, limit int) ([]driver.PoisonedMessage, error) {
	start := 0
	if after != "" {
		id, err := strconv.Atoi(after)
		if err != nil {
			return nil, fmt.Errorf("memory: poisoned message %q: %w", after, driver.ErrNotFound)
		}
		start = id
	}
	q := p.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	i, _ := slices.BinarySearchFunc(q.poison, start+1, func(x *poisoned, id int) int { return x.id - id })
	var list []driver.PoisonedMessage
	for _, x := range q.poison[i:][:min(max(limit, 0), len(q.poison)-i)] {
		list = append(list, q.show(x))
	}
	return list, nil
}

func (p *poisonQueue) Get(_ context.Context, id string) (driver.PoisonedMessage, error) {
	q := p.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	x, err := q.find(id)
	if err != nil {
		return driver.PoisonedMessage{}, err
	}
	return q.show(x), nil
}

// Replay hands messages to the group again. It blocks while the group is full.
func (p *poisonQueue) Replay(ctx context.Context, ids ...string) (int, error) {
	return p.take(ids, func(x *poisoned) error {
		topic, msg := p.queue.open(x)
		since := driver.FaultOf(msg.Metadata).FirstAt
		driver.ClearFault(msg.Metadata)
		it := newItem(msg, topic)
		it.since, it.place = since, x.place
		return p.transport.enqueue(ctx, []*queue{p.queue}, it, handlerClass)
	})
}

func (p *poisonQueue) Drop(_ context.Context, ids ...string) (int, error) {
	return p.take(ids, func(*poisoned) error { return nil })
}

// Put fails where the poison queue has no room.
func (p *poisonQueue) Put(_ context.Context, msgs ...driver.PoisonedMessage) error {
	if p.transport.closed.Load() {
		return driver.ErrClosed
	}
	for _, m := range msgs {
		if err := driver.ValidateTopic(m.Topic()); err != nil {
			return fmt.Errorf("memory: poisoned message %s: %w", driver.MessageID(m.Message), err)
		}
	}
	q := p.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	var missing error
	for _, m := range msgs {
		data := q.parcels.pack(m.Message.UUID, m.Topic(), m.Message.Metadata, m.Message.Payload)
		old := new(poisoned)
		if m.ID != "" {
			x, err := q.find(m.ID)
			if err == nil && x.taken {
				err = q.notFound(m.ID)
			}
			if err != nil {
				missing = err
				continue
			}
			old = x
		}
		if err := q.store(old, data); err != nil {
			return err
		}
		if m.ID == "" {
			q.holdAdded(old, m.Message)
		}
	}
	return missing
}

// holdAdded gives an operator's message its place behind what is in the group, and lets it hold back its
// key. The caller holds q.mu.
func (q *queue) holdAdded(x *poisoned, msg *message.Message) {
	q.places++
	x.place = q.places
	if key := q.orderKey(msg); q.park && key != "" {
		x.holds = key
		q.holdBack(key, x.place)
	}
}

// take calls do with each message and takes those out of the queue for which it succeeds.
func (p *poisonQueue) take(ids []string, do func(*poisoned) error) (int, error) {
	if p.transport.closed.Load() {
		return 0, driver.ErrClosed
	}
	var firstErr error
	done := make(map[int]bool)
	for _, id := range ids {
		x, err := p.queue.claim(id)
		if err == nil {
			if err = do(x); err == nil {
				done[x.id] = true
			} else {
				p.queue.unclaim(x)
			}
		}
		if err != nil && firstErr == nil {
			firstErr = err
		}
	}
	return p.queue.forget(done), firstErr
}

func (p *poisonQueue) Len(context.Context) (int, error) {
	p.queue.mu.Lock()
	defer p.queue.mu.Unlock()
	return len(p.queue.poison), nil
}

// find looks a message up. The caller holds q.mu.
func (q *queue) find(id string) (*poisoned, error) {
	n, err := strconv.Atoi(id)
	if err == nil {
		if i, ok := slices.BinarySearchFunc(q.poison, n, func(x *poisoned, id int) int { return x.id - id }); ok {
			return q.poison[i], nil
		}
	}
	return nil, q.notFound(id)
}

func (q *queue) notFound(id string) error {
	return fmt.Errorf("memory: poisoned message %q of group %q: %w", id, q.group, driver.ErrNotFound)
}

// show makes what operators see. The caller holds q.mu.
func (q *queue) show(x *poisoned) driver.PoisonedMessage {
	_, msg := q.parcels.unpack(x.data)
	return driver.PoisonedMessage{ID: strconv.Itoa(x.id), Message: msg, Fault: driver.FaultOf(msg.Metadata), Parked: q.parkedBehind(x)}
}
