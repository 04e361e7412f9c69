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

// busy reports whether the pair is being read, or must be.
func (p *parkedQueues) busy() bool { return p.pass != nil || p.fencing || p.wanted() }

// wanted reports whether a pass is needed.
func (p *parkedQueues) wanted() bool { return !p.fencing && (p.sweep || len(p.draining) > 0) }

// want records that a released key has parked messages.
func (p *parkedQueues) want(key string) {
	p.draining[key] = true
	p.start()
}

// start begins a pass if it is needed and allowed.
func (p *parkedQueues) start() {
	if p.pass != nil || !p.wanted() || p.stopping || p.over || p.now.Before(p.notBefore) {
		return
	}
	for key := range p.draining {
		if p.state.blocked(key) || p.state.pairOf(key) != p.pair {
			delete(p.draining, key)
		}
	}
	if p.wanted() {
		p.pass = &pass{name: p.name(), side: p.side(), moved: make(map[string]bool), began: p.now}
		p.emit(StartPass{p.pair, p.pass.side})
	}
}

// mark appends a marker.
func (p *parkedQueues) mark() {
	p.pass.marker, p.pass.met, p.pass.appended = p.name(), false, false
	p.send(Source{p.pair, p.pass.side}, ControlMarker, p.pass.marker)
}

// read handles a message of a parked queue.
func (p *parkedQueues) read(it *item) {
	msg, side := &it.msg, it.from.Side
	void := p.state.pair(p.pair).Void[side]
	written := msg.Seq // to this queue
	if msg.Stamp != (Name{}) {
		written = msg.Stamp
	} else if turned := p.state.pair(p.pair).Void[side.other()]; !p.state.lost && turned.Compare(void) > 0 {
		void = turned // copies are appended to a side from its turn on; others are of a leader whose turn to it was void
	}
	switch {
	case p.pass == nil || p.pass.side != side:
		if msg.Control == ControlNone && written.Compare(void) >= 0 {
			p.stepDown("a message was read from a parked queue that is not being read")
			return
		}
		p.emit(Ack{msg.Tag}) // of an earlier leader
		return
	case msg.Control == ControlMarker && msg.Name == p.pass.marker:
		p.pass.met = true
	}
	p.pass.unacked++
	switch {
	case msg.Control != ControlNone:
		p.messages++ // it was not counted
		p.m.ack(it)
	case msg.Seq == Name{}: // not published by a leader
		p.copy(it, Copy{To: ToPoison}, func() { p.m.ack(it) })
	case written.Compare(void) < 0: // its ack was lost, or its writer did not lead any more
		p.m.ack(it)
	case p.state.lost && p.state.pairOf(msg.Key) != 0 && p.state.pairOf(msg.Key) != p.pair: // where its key is parked now
		p.m.pairs[p.state.pairOf(msg.Key)-1].add(it)
	case p.state.isAway(msg): // as the first delivery of it, which was sent away
		p.m.leader.fence(func() { p.m.ack(it) })
	case !p.counts(it):
		p.m.ack(it)
	default:
		p.readMessage(it)
	}
}

// counts reports whether the message is parked. Any other copy is a duplicate: its writer did not lead any more, and could not ack
// the original. If the log was lost, all copies count, because a duplicate is better than a loss.
func (p *parkedQueues) counts(it *item) bool {
	key, pair := it.msg.Key, p.state.pairOf(it.msg.Key)
	if key == "" {
		return false
	}
	if p.state.lost && (pair == 0 || pair == p.pair && it.msg.Seq.Epoch < p.state.keys[key].since) {
		p.write(&Record{Kind: kindPark, Key: keyText(key), Pair: p.pair, Since: 1}, nil)
		p.draining[key] = true
		return true
	}
	return pair == p.pair && it.msg.Seq.Epoch >= p.state.keys[key].since
}

// readMessage hands out or moves a parked message.
func (p *parkedQueues) readMessage(it *item) {
	k := p.m.queue(it.msg.Key)
	it.key = k
	follows := len(k.parked) > 0 || k.current != nil && k.current.parked()
	if p.pass.moveAll || p.pass.moved[k.name] || p.state.blocked(k.name) && !follows {
		p.move(it)
	} else {
		k.parked = append(k.parked, it)
	}
	k.run()
}

// move copies a message to the other side.
func (p *parkedQueues) move(it *item) {
	it.phase = leaving
	p.pass.moved[it.key.name] = true
	p.copy(it, Copy{
		To: ToParked, Pair: p.pair, Side: p.pass.side.other(), Seq: it.msg.Seq, Stamp: p.pass.name, Repeat: it.msg.Redelivered,
	}, func() {
		p.messages++
		p.m.ack(it)
	})
}

// ack acks a message that a pass has read.
func (p *parkedQueues) ack(it *item) {
	p.emit(Ack{it.msg.Tag})
	p.messages = max(p.messages-1, 0)
	p.pass.unacked--
	p.end()
}

// end ends a pass when all its messages are acked.
func (p *parkedQueues) end() {
	ps := p.pass
	if !ps.met || ps.unacked > 0 || p.over {
		return
	}
	if ps.appended {
		p.mark()
		return
	}
	var opened []string
	for _, key := range slices.Sorted(maps.Keys(p.draining)) {
		if !ps.moveAll && !ps.moved[key] && !p.state.blocked(key) && p.state.pairOf(key) == p.pair {
			opened = append(opened, key)
			delete(p.draining, key)
			p.write(&Record{Kind: kindOpen, Key: keyText(key)}, nil)
		}
	}
	p.pass, p.fencing, p.sweep = nil, true, p.sweep && ps.moveAll
	p.m.checkSwept()
	if len(ps.moved) > 0 {
		p.notBefore = p.now.Add(passPause * p.now.Sub(ps.began))
	}
	p.write(&Record{Kind: kindTurn, Pair: p.pair, Side: ps.side.other(), Turn: p.name()}, func() {
		// If this process does not lead any more, the turn is void, and another pass would change the order.
		p.m.leader.fence(func() {
			p.fencing = false
			p.start()
		})
	})
	p.emit(EndPass{p.pair, ps.side})
	for _, key := range opened {
		if k := p.m.queues[key]; k != nil {
			k.run()
		}
	}
}
