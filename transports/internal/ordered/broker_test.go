package ordered

import (
	"fmt"
	"slices"
	"time"
)

// A simulated broker: a group queue with a single active consumer, a log, pairs of parked queues, a poison queue and a
// delay. Commands reach it through the wire of a session, in order, and may be lost with the session's end.

// body is a message on the broker.
type body struct {
	id      int // of the application's message; 0 for control messages
	key     string
	print   uint64
	head    string
	seq     Name
	stamp   Name
	control Control
	name    Name
	repeat  bool
	record  []byte
	due     time.Time
}

func (q queued) String() string {
	return fmt.Sprintf("id %d key %q head %q seq %v stamp %v %s %v pos %d redelivered %v repeat %v %s", q.id, q.key, q.head, q.seq, q.stamp, q.control, q.name, q.pos, q.redelivered, q.repeat, q.record)
}

type queued struct {
	*body
	pos         uint64
	redelivered bool
}

type unacked struct {
	queued
	consumer *consumer
}

type consumer struct {
	session   *modelSession
	prefetch  int
	from      Source
	log       bool
	suspended int // the queue can't reach it for so many steps
	unacked   int
}

type queue struct {
	ready     []queued
	out       map[Tag]unacked
	consumers []*consumer
	current   *consumer // the active one, until it is gone or can't be reached
	pos       uint64
	acked     []queued // a few of the last
}

func newQueue() *queue { return &queue{out: make(map[Tag]unacked)} }

func (q *queue) publish(b *body) {
	q.pos++
	q.ready = append(q.ready, queued{body: b, pos: q.pos})
}

func (q *queue) active() *consumer {
	if c := q.current; c != nil && c.suspended == 0 && slices.Contains(q.consumers, c) {
		return c
	}
	q.current = nil
	for _, c := range q.consumers {
		if c.suspended == 0 {
			q.current = c
			return c
		}
	}
	return nil
}

// deliver sends a message to the active consumer, and reports whether it could.
func (q *queue) deliver() bool {
	c := q.active()
	if c == nil || len(q.ready) == 0 || c.unacked >= c.prefetch {
		return false
	}
	msg := q.ready[0]
	q.ready = q.ready[1:]
	s := c.session
	s.w.tags++
	tag := s.w.tags
	q.out[tag] = unacked{msg, c}
	c.unacked++
	s.inbox = append(s.inbox, func() { s.arrived(c, tag, msg) })
	if msg.redelivered && len(q.ready) > 0 && q.ready[0].redelivered {
		q.deliver() // what came back is sent at once
	}
	return true
}

func (q *queue) ack(tag Tag, s *modelSession) {
	if u, ok := q.out[tag]; ok && u.consumer.session == s {
		delete(q.out, tag)
		u.consumer.unacked--
		q.acked = append(q.acked, u.queued)
		if len(q.acked) > 3 {
			q.acked = q.acked[1:]
		}
	}
}

// giveBack returns messages to their places.
func (q *queue) giveBack(msgs []queued) {
	for i := range msgs {
		msgs[i].redelivered = true
	}
	q.ready = append(msgs, q.ready...)
	slices.SortStableFunc(q.ready, func(a, b queued) int { return int(a.pos) - int(b.pos) })
}

// takeBack takes everything back from a consumer.
func (q *queue) takeBack(c *consumer) {
	var back []queued
	for tag, u := range q.out {
		if u.consumer == c {
			back = append(back, u.queued)
			delete(q.out, tag)
		}
	}
	c.unacked = 0
	q.giveBack(back)
}

// giveBackOne returns one message to its place.
func (q *queue) giveBackOne(tag Tag, s *modelSession) {
	if u, ok := q.out[tag]; ok && u.consumer.session == s {
		delete(q.out, tag)
		u.consumer.unacked--
		q.giveBack([]queued{u.queued})
	}
}

// loseAcks undoes the last acks.
func (q *queue) loseAcks(n int) {
	n = min(n, len(q.acked))
	q.giveBack(slices.Clone(q.acked[len(q.acked)-n:]))
	q.acked = nil
}

func (q *queue) cancel(c *consumer) {
	q.consumers = slices.DeleteFunc(q.consumers, func(o *consumer) bool { return o == c })
}

type broker struct {
	now    time.Time
	group  *queue
	log    *queue
	parked map[Source]*queue
	poison []*body
	delay  []*body
	prints uint64
}

func newBroker(pairs int) *broker {
	b := &broker{group: newQueue(), log: newQueue(), parked: make(map[Source]*queue), now: time.Unix(1000, 0)}
	for pair := range pairs {
		b.parked[Source{pair + 1, 0}] = newQueue()
		b.parked[Source{pair + 1, 1}] = newQueue()
	}
	return b
}

func (b *broker) queues() []*queue {
	all := []*queue{b.group, b.log}
	for pair := 1; b.parked[Source{pair, 0}] != nil; pair++ {
		all = append(all, b.parked[Source{pair, 0}], b.parked[Source{pair, 1}])
	}
	return all
}

func (b *broker) queue(from Source) *queue {
	if from.Pair == 0 {
		return b.group
	}
	return b.parked[from]
}

// control puts a control message into a queue.
func (b *broker) control(q *queue, msg body) {
	b.prints++
	msg.print = 1<<40 + b.prints
	q.publish(&msg)
}

// close ends a session at the broker: its consumers are gone, with all they had.
func (b *broker) close(s *modelSession) {
	if s.cut {
		return
	}
	s.cut = true
	for _, q := range b.queues() {
		for _, c := range slices.Clone(q.consumers) {
			if c.session == s {
				q.cancel(c)
			}
		}
		var back []queued
		for tag, u := range q.out {
			if u.consumer.session == s {
				back = append(back, u.queued)
				delete(q.out, tag)
			}
		}
		q.giveBack(back)
	}
}

// advance moves time on, and what is due to the group's queue.
func (b *broker) advance(d time.Duration) {
	b.now = b.now.Add(d)
	rest := b.delay[:0]
	for _, msg := range b.delay {
		if msg.due.After(b.now) {
			rest = append(rest, msg)
		} else {
			b.group.publish(msg)
		}
	}
	b.delay = rest
}
