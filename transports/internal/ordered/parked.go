package ordered

import (
	"slices"
	"time"
)

// Only transports whose broker has queues need parked queues. A transport with random access reads parked messages by key.

// parkedQueues is a pair of queues, a and b. Copies are appended to one side, which is in the log. A pass reads that side, and moves
// messages that it does not hand out to the other side. At any time, messages on the other side come before those on this side,
// also when a process is killed during a pass.
type parkedQueues struct {
	*session
	m         *Machine
	pair      int
	pass      *pass
	fencing   bool            // the last pass is over, and not fenced yet
	draining  map[string]bool // keys that are released, and whose messages are here
	sweep     bool            // there are leftovers, or messages whose records were lost
	notBefore time.Time       // the next pass
	messages  int
}

// openPairs sets the pairs with the counts of the takeover.
func (m *Machine) openPairs(counts map[Source]int) {
	for pair := 1; pair <= max(m.config.Pairs, m.state.pairCount()); pair++ {
		p := &parkedQueues{session: m.session, m: m, pair: pair, draining: make(map[string]bool)}
		p.messages = counts[Source{pair, 0}] + counts[Source{pair, 1}]
		p.sweep = p.messages > 0 && (m.state.lost || m.state.inPair[pair] == 0)
		m.pairs = append(m.pairs, p)
	}
	m.checkSwept()
}

// checkSwept writes the record that everything which was parked when the log was lost has been handled.
func (m *Machine) checkSwept() {
	if m.state.lost && !slices.ContainsFunc(m.pairs, func(p *parkedQueues) bool { return p.sweep }) {
		m.write(&Record{Kind: kindSwept}, nil)
	}
}

// parkBlocked moves the messages of a blocked key to the parked queues.
func (k *keyQueue) parkBlocked() {
	if !k.m.state.blocked(k.name) {
		return
	}
	if k.current == nil || !k.current.parked() { // else they must stay behind it
		for len(k.parked) > 0 {
			it := pop(&k.parked)
			k.m.pairs[it.from.Pair-1].move(it)
		}
	}
	k.park()
}

// mayPark reports whether the messages of a key may be parked now. They must not overtake the current message, which would be
// redelivered behind them after a crash. A message that returned is first in any case, and so is one whose record is written.
func (k *keyQueue) mayPark() bool {
	c := k.current
	return len(k.here) > 0 && !k.parking && (c == nil || c.parked() || c.awaited || c.written)
}

// park appends the messages of a key to its parked queue. It writes the record first, because without it a later leader would
// drop the copies as leftovers.
func (k *keyQueue) park() {
	if !k.mayPark() || k.m.over {
		return
	}
	pair := k.m.state.pairOf(k.name)
	if pair == 0 {
		k.parking = true
		k.m.write(&Record{Kind: kindPark, Key: keyText(k.name), Pair: k.m.state.roomiest(k.m.config.Pairs)}, func() {
			k.parking = false
			k.run()
		})
		return
	}
	for len(k.here) > 0 {
		it := pop(&k.here)
		it.phase = leaving
		k.m.pairs[pair-1].add(it)
	}
}

// side returns the side to which copies are appended.
func (p *parkedQueues) side() Side { return p.state.pair(p.pair).Side }

// add copies a message to the end of the pair.
func (p *parkedQueues) add(it *item) {
	if p.pass != nil {
		p.pass.appended = true
	}
	p.copy(it, Copy{
		To: ToParked, Pair: p.pair, Side: p.side(), Seq: p.name(), Repeat: it.msg.Redelivered,
	}, func() {
		p.messages++
		p.m.ack(it)
	})
}
