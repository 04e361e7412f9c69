package ordered

import (
	"slices"
	"time"
)

// Parked queues: only transports whose broker has queues need them. One with random access reads what is parked by key.

// parkedQueues is a pair of queues, a and b. Copies are appended to one side, which the log names; a pass reads that side
// and moves what it does not hand out to the other side. At any time, what is on the other side comes before what
// is on the side: that is the order of the pair, also when a process dies within a pass.
type parkedQueues struct {
	pair      int
	pass      *pass
	fencing   bool            // the last pass is over, and not fenced yet
	draining  map[string]bool // keys that are released, and whose messages are here
	sweep     bool            // there are leftovers, or messages that the lost log has known
	notBefore time.Time       // the next pass
	messages  int
}

// openPairs makes what a takeover has found.
func (m *Machine) openPairs(counts map[Source]int) {
	for pair := 1; pair <= max(m.config.Pairs, m.state.pairCount()); pair++ {
		p := &parkedQueues{pair: pair, draining: make(map[string]bool)}
		p.messages = counts[Source{pair, 0}] + counts[Source{pair, 1}]
		p.sweep = p.messages > 0 && (m.state.lost || m.state.inPair[pair] == 0)
		m.pairs = append(m.pairs, p)
	}
	m.checkSwept()
}

// checkSwept notes down that the loss of the log is made good.
func (m *Machine) checkSwept() {
	if m.state.lost && !slices.ContainsFunc(m.pairs, func(p *parkedQueues) bool { return p.sweep }) {
		m.write(&Record{Kind: kindSwept}, nil)
	}
}

func (m *Machine) side(pair int) Side { return m.state.pair(pair).Side }

// parkBlocked moves what is here of a key that is blocked to the parked queues.
func (m *Machine) parkBlocked(k *keyQueue) {
	if !m.blocked(k.name) {
		return
	}
	if k.current == nil || !k.current.parked() { // else what is behind it must stay behind it
		for len(k.parked) > 0 {
			m.move(pop(&k.parked))
		}
	}
	m.park(k)
}

// mayPark reports whether what is here of a key may be parked now. It may not overtake the current message: after a crash
// that would come again behind it. A message that came back is first in any case, and so is one of which the log knows
// that it is away.
func (k *keyQueue) mayPark() bool {
	c := k.current
	return len(k.here) > 0 && !k.parking && (c == nil || c.parked() || c.awaited || c.written)
}

// park appends what is here of a key to its parked queue. It writes to the log first that it is there, else a later
// leader would take the copies for leftovers.
func (m *Machine) park(k *keyQueue) {
	if !k.mayPark() || m.over {
		return
	}
	pair := m.pairOf(k.name)
	if pair == 0 {
		k.parking = true
		m.write(&Record{Kind: kindPark, Key: keyText(k.name), Pair: m.state.roomiest(m.config.Pairs)}, func() {
			k.parking = false
			m.run(k)
		})
		return
	}
	for len(k.here) > 0 {
		it := pop(&k.here)
		it.phase = leaving
		m.appendParked(it, pair)
	}
}

// appendParked copies a message behind all that is parked in a pair.
func (m *Machine) appendParked(it *item, pair int) {
	p := m.pairs[pair-1]
	if p.pass != nil {
		p.pass.appended = true
	}
	m.copy(it, Copy{
		To: ToParked, Pair: pair, Side: m.side(pair), Seq: m.name(), Repeat: it.msg.Redelivered,
	}, func() {
		p.messages++
		m.ack(it)
	})
}
