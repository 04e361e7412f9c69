package memory

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// poisoned is a message in the poison queue.
type poisoned struct {
	id    int // ascending
	data  []byte
	taken bool   // is being replayed or dropped
	seq   int    // its position in the group
	key   string // the key that it holds back, "" for none
}

// recordOverhead is the approximate memory of a poisoned message without its data, in bytes.
const recordOverhead = 64

// poisonStore stores the poisoned messages of a group as compact records. The group's mutex guards it.
type poisonStore struct {
	limit   int // bytes
	bytes   int
	list    []*poisoned // by id
	lastID  int
	records records
}

// put stores a message in x. If x is in the store already, the message replaces the one in it; else x is appended.
func (s *poisonStore) put(x *poisoned, uuid, topic string, headers message.Metadata, payload []byte) error {
	data := s.records.encode(uuid, topic, headers, payload)
	more := len(data) - len(x.data)
	if x.id == 0 {
		more += recordOverhead
	}
	if s.bytes+more > s.limit {
		return fmt.Errorf("%d poisoned bytes: %w", s.bytes, errPoisonFull)
	}
	s.bytes += more
	x.data = data
	if x.id == 0 {
		s.lastID++
		x.id = s.lastID
		s.list = append(s.list, x)
	}
	return nil
}

// after returns up to limit messages with higher ids.
func (s *poisonStore) after(id, limit int) []*poisoned {
	i, _ := s.search(id + 1)
	return s.list[i:][:min(max(limit, 0), len(s.list)-i)]
}

func (s *poisonStore) search(id int) (int, bool) {
	return slices.BinarySearchFunc(s.list, id, func(x *poisoned, id int) int { return x.id - id })
}

// find returns the message with the id, nil if there is none.
func (s *poisonStore) find(id string) *poisoned {
	if n, err := strconv.Atoi(id); err == nil {
		if i, ok := s.search(n); ok {
			return s.list[i]
		}
	}
	return nil
}

// remove removes messages.
func (s *poisonStore) remove(done map[*poisoned]bool) {
	s.list = slices.DeleteFunc(s.list, func(x *poisoned) bool {
		if done[x] {
			s.bytes -= len(x.data) + recordOverhead
		}
		return done[x]
	})
}

// poisonQueue is a group's poison queue.
type poisonQueue struct {
	group     *group
	transport *Transport
}

func (p *poisonQueue) List(_ context.Context, after string, limit int) (list []driver.PoisonedMessage, err error) {
	start := 0
	if after != "" {
		if start, err = strconv.Atoi(after); err != nil {
			return nil, p.notFound(after)
		}
	}
	p.group.mu.Lock()
	defer p.group.mu.Unlock()
	for _, x := range p.group.poison.after(start, limit) {
		list = append(list, p.show(x))
	}
	return list, nil
}

func (p *poisonQueue) Get(_ context.Context, id string) (driver.PoisonedMessage, error) {
	p.group.mu.Lock()
	defer p.group.mu.Unlock()
	x := p.group.poison.find(id)
	if x == nil {
		return driver.PoisonedMessage{}, p.notFound(id)
	}
	return p.show(x), nil
}

// show returns a message as operators see it.
func (p *poisonQueue) show(x *poisoned) driver.PoisonedMessage {
	_, msg := p.group.poison.records.decode(x.data)
	return driver.PoisonedMessage{
		ID: strconv.Itoa(x.id), Message: msg, Fault: driver.FaultOf(msg.Metadata), Parked: p.group.keys.behind(x.key, x.seq),
	}
}

// Replay implements [driver.PoisonQueue]. It blocks while the group is full.
func (p *poisonQueue) Replay(ctx context.Context, ids ...string) (int, error) {
	return p.settle(ctx, ids, func(x *poisoned) error {
		topic, msg := p.read(x)
		since := driver.FaultOf(msg.Metadata).FirstAt
		driver.ClearFault(msg.Metadata)
		it := newItem(msg, topic)
		it.since, it.seq = since, x.seq
		return p.transport.enqueue(ctx, []*group{p.group}, it, handlerClass)
	})
}

func (p *poisonQueue) Drop(ctx context.Context, ids ...string) (int, error) {
	return p.settle(ctx, ids, func(*poisoned) error { return nil })
}

// Put implements [driver.PoisonQueue]. It returns an error if the poison queue is full.
func (p *poisonQueue) Put(_ context.Context, msgs ...driver.PoisonedMessage) error {
	if p.transport.closed.Load() {
		return driver.ErrClosed
	}
	for _, m := range msgs {
		if err := driver.ValidateTopic(m.Topic()); err != nil {
			return fmt.Errorf("memory: poisoned message %s: %w", driver.MessageID(m.Message), err)
		}
	}
	g := p.group
	g.mu.Lock()
	defer g.mu.Unlock()
	var missing error
	for _, m := range msgs {
		x := new(poisoned)
		if m.ID != "" {
			if x = g.poison.find(m.ID); x == nil || x.taken {
				missing = p.notFound(m.ID)
				continue
			}
		}
		if err := g.poison.put(x, m.Message.UUID, m.Topic(), m.Message.Metadata, m.Message.Payload); err != nil {
			return fmt.Errorf("memory: group %q: %w", g.name, err)
		}
		if m.ID == "" { // a new message is behind all others of the group
			x.seq = g.nextSeq()
			g.hold(x, g.orderKey(m.Message))
		}
	}
	return missing
}

// settle calls do with each message, and removes those from the queue for which do returns nil.
func (p *poisonQueue) settle(ctx context.Context, ids []string, do func(*poisoned) error) (int, error) {
	if p.transport.closed.Load() {
		return 0, driver.ErrClosed
	}
	var firstErr error
	done := make(map[*poisoned]bool)
	for _, id := range ids {
		x, err := p.claim(id)
		if err == nil {
			if err = do(x); err == nil {
				done[x] = true
				driver.Progress(ctx, 1)
			} else {
				p.unclaim(x)
			}
		}
		if err != nil && firstErr == nil {
			firstErr = err
		}
	}
	g := p.group
	g.mu.Lock()
	defer g.mu.Unlock()
	g.poison.remove(done)
	for x := range done {
		g.releaseHold(x)
	}
	return len(done), firstErr
}

// claim returns a message that is not being replayed or dropped by another call, and marks it as taken.
func (p *poisonQueue) claim(id string) (*poisoned, error) {
	p.group.mu.Lock()
	defer p.group.mu.Unlock()
	x := p.group.poison.find(id)
	if x == nil || x.taken {
		return nil, p.notFound(id)
	}
	x.taken = true
	return x, nil
}

func (p *poisonQueue) unclaim(x *poisoned) {
	p.group.mu.Lock()
	defer p.group.mu.Unlock()
	x.taken = false
}

func (p *poisonQueue) read(x *poisoned) (topic string, msg *message.Message) {
	p.group.mu.Lock()
	defer p.group.mu.Unlock()
	return p.group.poison.records.decode(x.data)
}

func (p *poisonQueue) Len(context.Context) (int, error) {
	p.group.mu.Lock()
	defer p.group.mu.Unlock()
	return len(p.group.poison.list), nil
}

func (p *poisonQueue) notFound(id string) error {
	return fmt.Errorf("memory: poisoned message %q of group %q: %w", id, p.group.name, driver.ErrNotFound)
}
