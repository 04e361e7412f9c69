package ordered

import (
	"maps"
	"slices"
	"time"
)

// A pass reads one side of a pair of parked queues up to its end. It hands out the messages of released keys and moves
// all others to the other side, in their order. When nothing is left, the sides are exchanged: that is a turn.
type pass struct {
	name     Name // the stamp of messages that it moves
	side     Side
	marker   Name            // the end of what it reads
	met      bool            // the marker was read
	appended bool            // something was appended behind the marker
	moveAll  bool            // the other side had messages, which come before those of this side
	moved    map[string]bool // keys of which something was moved; the rest must follow it
	unacked  int
	began    time.Time
}

// passPause is how much longer than a pass that has moved messages the pause after it is, at least.
const passPause = 3

// wanted reports whether a pass is needed.
func (p *parkedQueues) wanted() bool { return !p.fencing && (p.sweep || len(p.draining) > 0) }

// wantPass records that a released key has parked messages.
func (m *Machine) wantPass(key string) {
	p := m.pairs[m.pairOf(key)-1]
	p.draining[key] = true
	m.startPass(p)
}

// startPass begins a pass if it is needed and allowed.
func (m *Machine) startPass(p *parkedQueues) {
	if p.pass != nil || !p.wanted() || m.stopping || m.over || m.now.Before(p.notBefore) {
		return
	}
	for key := range p.draining {
		if m.blocked(key) || m.pairOf(key) != p.pair {
			delete(p.draining, key)
		}
	}
	if p.wanted() {
		p.pass = &pass{name: m.name(), side: m.side(p.pair), moved: make(map[string]bool), began: m.now}
		m.emit(StartPass{p.pair, p.pass.side})
	}
}

// PassStarted reports that the queue of a StartPass is being consumed, by this session only, and whether the other
// side of the pair was empty then.
func (m *Machine) PassStarted(now time.Time, pair int, otherEmpty bool) {
	m.now = now
	if m.over || pair < 1 || pair > len(m.pairs) || m.pairs[pair-1].pass == nil {
		return
	}
	p := m.pairs[pair-1]
	p.pass.moveAll = !otherEmpty
	m.mark(p)
}

// mark appends a marker.
func (m *Machine) mark(p *parkedQueues) {
	p.pass.marker, p.pass.met, p.pass.appended = m.name(), false, false
	m.send(Source{p.pair, p.pass.side}, ControlMarker, p.pass.marker)
}

// read handles a message of a parked queue.
func (m *Machine) read(it *item) {
	msg, void := &it.msg, m.state.pair(it.from.Pair).Void[it.from.Side]
	p := m.pairs[it.from.Pair-1]
	written := msg.Seq // to this queue
	if msg.Stamp != (Name{}) {
		written = msg.Stamp
	}
	switch {
	case p.pass == nil || p.pass.side != it.from.Side:
		if msg.Control == ControlNone && written.Compare(void) >= 0 {
			m.stepDown("a message was read from a parked queue that is not being read")
			return
		}
		m.emit(Ack{msg.Tag}) // of an earlier leader
		return
	case msg.Control == ControlMarker && msg.Name == p.pass.marker:
		p.pass.met = true
	}
	p.pass.unacked++
	switch {
	case msg.Control != ControlNone:
		p.messages++ // it was not counted
		m.ack(it)
	case msg.Seq == Name{}: // not published by a leader
		m.copy(it, Copy{To: ToPoison}, func() { m.ack(it) })
	case written.Compare(void) < 0: // its ack was lost
		m.ack(it)
	case m.state.lost && m.pairOf(msg.Key) != 0 && m.pairOf(msg.Key) != p.pair: // where its key is parked now
		m.appendParked(it, m.pairOf(msg.Key))
	case !m.counts(p, it):
		m.ack(it)
	default:
		m.readMessage(p, it)
	}
}

// counts reports whether the message is parked. Any other copy is a duplicate: its writer did not lead any more, and could not ack
// the original. If the log was lost, all copies count, because a duplicate is better than a loss.
func (m *Machine) counts(p *parkedQueues, it *item) bool {
	key, pair := it.msg.Key, m.pairOf(it.msg.Key)
	if m.isAway(&it.msg) || key == "" {
		return false
	}
	if m.state.lost && (pair == 0 || pair == p.pair && it.msg.Seq.Epoch < m.state.keys[key].since) {
		m.write(&Record{Kind: kindPark, Key: keyText(key), Pair: p.pair, Since: 1}, nil)
		p.draining[key] = true
		return true
	}
	return pair == p.pair && it.msg.Seq.Epoch >= m.state.keys[key].since
}

// readMessage hands out or moves a parked message.
func (m *Machine) readMessage(p *parkedQueues, it *item) {
	k := m.queue(it.msg.Key)
	it.key = k
	follows := len(k.parked) > 0 || k.current != nil && k.current.parked()
	if p.pass.moveAll || p.pass.moved[k.name] || m.blocked(k.name) && !follows {
		m.move(it)
	} else {
		k.parked = append(k.parked, it)
	}
	m.run(k)
}

// move copies a message to the other side.
func (m *Machine) move(it *item) {
	p := m.pairs[it.from.Pair-1]
	it.phase = leaving
	p.pass.moved[it.key.name] = true
	m.copy(it, Copy{
		To: ToParked, Pair: p.pair, Side: p.pass.side.other(), Seq: it.msg.Seq, Stamp: p.pass.name, Repeat: it.msg.Redelivered,
	}, func() {
		p.messages++
		m.ack(it)
	})
}

// ackParked acks a message that a pass has read.
func (m *Machine) ackParked(it *item) {
	p := m.pairs[it.from.Pair-1]
	m.emit(Ack{it.msg.Tag})
	p.messages = max(p.messages-1, 0)
	p.pass.unacked--
	m.endPass(p)
}

// endPass ends a pass when all its messages are acked.
func (m *Machine) endPass(p *parkedQueues) {
	ps := p.pass
	if !ps.met || ps.unacked > 0 || m.over {
		return
	}
	if ps.appended {
		m.mark(p)
		return
	}
	var opened []string
	for _, key := range slices.Sorted(maps.Keys(p.draining)) {
		if !ps.moveAll && !ps.moved[key] && !m.blocked(key) && m.pairOf(key) == p.pair {
			opened = append(opened, key)
			delete(p.draining, key)
			m.write(&Record{Kind: kindOpen, Key: keyText(key)}, nil)
		}
	}
	p.pass, p.fencing, p.sweep = nil, true, p.sweep && ps.moveAll
	m.checkSwept()
	if len(ps.moved) > 0 {
		p.notBefore = m.now.Add(passPause * m.now.Sub(ps.began))
	}
	m.write(&Record{Kind: kindTurn, Pair: p.pair, Side: ps.side.other(), Turn: m.name()}, func() {
		// If this process does not lead any more, the turn is void, and another pass would change the order.
		m.fence(func() {
			p.fencing = false
			m.startPass(p)
		})
	})
	m.emit(EndPass{p.pair, ps.side})
	for _, key := range opened {
		if k := m.queues[key]; k != nil {
			m.run(k)
		}
	}
}
