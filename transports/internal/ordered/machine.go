package ordered

import (
	"slices"
	"time"
)

// Config configures a [Machine]. All fields must be set, except as noted.
type Config struct {
	Park        bool                 // later messages of a key wait behind its poisoned one
	Prefetch    int                  // how many deliveries of the group's queue the broker leaves unacked here, at least 8
	Held        int                  // how many of them may wait for a time or for a pass; less than Prefetch by at least 4
	HeldBytes   int                  // and how many bytes
	MaxKeys     int                  // how many keys may be known, in memory and in the log
	MaxKeyBytes int                  // and the bytes of their names
	Pairs       int                  // of parked queues, 1 to 64
	LogRecords  int                  // the length of the log after which a new session begins
	Short       time.Duration        // the longest wait of a message that stays here
	Tick        time.Duration        // how often the leader sends a tick while there is something to do and nothing arrives
	Idle        func() time.Duration // how long after a tick each process sends another one in any case; at least Tick
	Process     string               // names the process in its ticks, at most 200 bytes
}

// A Machine makes the decisions of one session of a group's leader: which messages may be handed out, which are parked, which
// records are written. Its methods report events; then Effects returns what must be done. It has no clock, starts no goroutines
// and does no I/O. A Machine and its Memory are not safe for concurrent use.
type Machine struct {
	*session
	leader    *leader
	queues    map[string]*keyQueue
	pairs     []*parkedQueues // pair 1 is at index 0
	items     map[Tag]*item   // that workers have
	waiting   []*item
	departing map[string]departure
	full      bool
	stopped   bool // Close was called
}

// New returns the machine of a session that leads: its takeover is ready. Counts are the messages in the parked queues,
// none of which has a consumer any more.
//
// Everything that was delivered to the last leader has arrived during the takeover, because its Prefetch was the same. (If it was
// higher, a few sessions step down until the rest is handled.)
func New(t *Takeover, counts map[Source]int, now time.Time) *Machine {
	s := &session{config: t.config, memory: t.memory, state: t.state, now: now}
	m := &Machine{
		session: s, leader: newLeader(s),
		queues: make(map[string]*keyQueue), items: make(map[Tag]*item), departing: make(map[string]departure),
	}
	m.memory.current = m
	m.openPairs(counts)
	for key, k := range m.state.keys {
		for _, a := range k.away {
			a.logged = true
		}
		if len(k.away) == 0 {
			m.pairs[k.pair-1].draining[key] = true
		}
	}
	for _, msg := range t.adopted {
		m.Arrived(now, Source{Pair: Adopted}, msg)
	}
	for _, msg := range t.first {
		m.Arrived(now, Source{}, msg)
	}
	m.leader.fresh = true
	m.Advance(now)
	return m
}

// Effects returns the effects since the last call. It must be called after each event.
func (m *Machine) Effects() []Effect {
	m.relieve()
	effects := m.effects
	m.effects = nil
	return effects
}

// Confirmed reports that the broker has confirmed all publishings up to op.
func (m *Machine) Confirmed(now time.Time, op uint64) {
	m.now = now
	m.confirmed(op)
}

// Arrived reports a delivery of the broker.
func (m *Machine) Arrived(now time.Time, from Source, msg *Message) {
	if m.over {
		return
	}
	m.now = now
	if len(msg.Key) > maxKey {
		msg.Key = msg.Key[:maxKey] // the adapter uses digests of long keys; if messages share a key, this only costs time
	}
	if len(msg.Head) > maxHead {
		msg.Head = ""
	}
	it := &item{msg: *msg, from: from}
	if m.leader.deposed(it) {
		return
	}
	switch {
	case it.parked():
		m.pairs[from.Pair-1].read(it)
	case msg.Control != ControlNone:
		m.control(it)
	default:
		m.enter(it)
	}
}

// enter handles an application's message from the group's queue.
func (m *Machine) enter(it *item) {
	if key, a := m.find(it.msg.Head); a != nil {
		it.awaited = true
		it.msg.Key = key // an operator may have changed it
		it.key = m.queue(it.msg.Key)
		it.key.heads = append(it.key.heads, it)
		it.key.run()
		return
	}
	switch {
	case m.state.isDone[it.msg.Head]: // an operator has replayed it twice
		m.afterRecords(func() { m.ack(it) })
	case it.msg.Key == "" && m.memory.has(it), m.state.isAway(&it.msg):
		m.ack(it)
	case it.msg.Key == "":
		m.deliver(it)
	default:
		it.key = m.queue(it.msg.Key)
		it.key.here = append(it.key.here, it)
		it.key.run()
	}
}

// control handles a control message from the group's queue.
func (m *Machine) control(it *item) {
	switch it.msg.Control {
	case ControlTick:
		m.leader.ticked(it)
		return
	case ControlDrop:
		if _, a := m.find(it.msg.Head); a != nil {
			if !a.logged {
				if a.drop != 0 {
					m.leader.ack(a.drop)
				}
				a.drop = it.msg.Tag
				return
			}
			m.done(it.msg.Head, func() { m.ack(it) })
			return
		}
	case ControlBlock:
		_, a := m.state.find(it.msg.Head)
		if m.config.Park && it.msg.Key != "" && it.msg.Head != "" && a == nil && !m.state.isDone[it.msg.Head] {
			a := &away{Head: it.msg.Head, Poison: true}
			m.write(&Record{Kind: kindBlock, Key: keyText(it.msg.Key), Away: a}, func() {
				m.logged(a)
				m.ack(it)
			})
			return
		}
	case ControlFence:
		m.leader.fenced(it.msg.Name)
		m.ack(it)
		return
	}
	m.afterRecords(func() { m.ack(it) }) // a record may be why it has no effect; a later version may have sent it
}

// Handled reports that a worker has handled a message.
func (m *Machine) Handled(now time.Time, tag Tag) {
	if it := m.take(now, tag, true); it != nil {
		m.memory.remember(it)
		m.finish(it)
	}
}

// Failed reports that a message must be delivered again after a time. The adapter counts its attempts.
func (m *Machine) Failed(now time.Time, tag Tag, after time.Duration) {
	it := m.take(now, tag, false)
	switch {
	case it == nil:
	case after > m.config.Short, m.stopping:
		m.depart(it, ToDelay, now.Add(max(after, 0)))
	default:
		m.wait(it, now.Add(max(after, 0)))
	}
}

// Poisoned reports that a message must be copied to the poison queue. The copy is confirmed when the message is acked.
func (m *Machine) Poisoned(now time.Time, tag Tag) {
	if it := m.take(now, tag, false); it != nil {
		m.depart(it, ToPoison, now)
	}
}

// take takes a message back from a worker. It returns nil if the session is over.
func (m *Machine) take(now time.Time, tag Tag, handled bool) *item {
	it := m.items[tag]
	if it == nil {
		return nil
	}
	delete(m.items, tag)
	if m.stopped {
		m.memory.release(it, handled)
		return nil
	}
	m.now = now
	if m.over {
		if handled {
			m.memory.remember(it)
		}
		return nil
	}
	return it
}

// wait keeps a message here until it is due.
func (m *Machine) wait(it *item, due time.Time) {
	it.phase, it.due = waiting, due
	m.waiting = append(m.waiting, it)
	m.wake()
}

// wake delivers the messages that are due.
func (m *Machine) wake() {
	for i := 0; i < len(m.waiting); {
		it := m.waiting[i]
		if it.due.After(m.now) || m.stopping {
			i++
			continue
		}
		m.waiting = slices.Delete(m.waiting, i, i+1)
		if it.stuck {
			it.stuck = false
			m.depart(it, it.to, it.until)
			continue
		}
		m.deliver(it)
	}
}

// depart sends a message away, if there is room for its key. Otherwise the message and its key wait here. The group stops consuming
// when Prefetch is used up.
func (m *Machine) depart(it *item, to Target, until time.Time) {
	if it.key != nil && (to != ToPoison || m.config.Park) && !m.roomFor(it.key.name) {
		it.stuck, it.to, it.until = true, to, until
		m.report(true)
		m.wait(it, m.now.Add(m.config.Short))
		return
	}
	m.report(false)
	m.sendAway(it, to, max(until.Sub(m.now), 0))
}

// ack acks a delivery.
func (m *Machine) ack(it *item) {
	switch {
	case it.parked():
		m.pairs[it.from.Pair-1].ack(it)
	case it.from.Pair == Adopted:
		m.emit(Ack{it.msg.Tag})
	default:
		m.leader.ack(it.msg.Tag)
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
	p.mark()
}

// Advance reports that time has passed. The adapter calls it at the time that Next returns, and at least twice within
// Config.Tick.
func (m *Machine) Advance(now time.Time) {
	if m.over {
		return
	}
	m.now = now
	m.leader.lead(m.idle())
	m.wake()
	for _, p := range m.pairs {
		p.start()
	}
}

// Next returns the time at which Advance must be called.
func (m *Machine) Next() time.Time {
	next := m.leader.nextTick(m.idle())
	for _, it := range m.waiting {
		next = earlier(next, it.due)
	}
	for _, p := range m.pairs {
		if p.pass == nil && p.wanted() {
			next = earlier(next, p.notBefore)
		}
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// idle reports whether the session has nothing to do: it has nothing but a tick, and reads no parked queue. Keys may be blocked.
func (m *Machine) idle() bool {
	return m.leader.idle() && len(m.queues)+len(m.items) == 0 && !slices.ContainsFunc(m.pairs, (*parkedQueues).busy)
}

// Stalled reports that the process stood still for so long that the broker may have closed its connection. Nothing is handed out
// until a message that the session sends to itself has returned.
func (m *Machine) Stalled(now time.Time) {
	m.now = now
	m.leader.stalled()
}

// MayDeliver reports whether messages of Deliver effects may be handed to workers now. The adapter asks for each.
func (m *Machine) MayDeliver() bool { return !m.over && !m.stopping && m.leader.wary == Name{} }

// Stop ends handing out and begins no pass. Messages that workers have can still be settled. Messages that wait here are sent away,
// because no other process has their attempts.
func (m *Machine) Stop(now time.Time) {
	m.now = now
	m.stopping = true
	m.leader.releaseGuard()
	waiting := m.waiting
	m.waiting = nil
	for _, it := range waiting {
		if it.stuck {
			m.waiting = append(m.waiting, it)
		} else {
			m.depart(it, ToDelay, it.due)
		}
	}
}

// Leave ends the lead of a session that has stopped. It is the last call before the connection is closed, because a leader has
// something unacked at any time. The last tick is acked, so that an idle group's queue is empty when no process is left. If
// another process stands by, or keys are being released, the tick stays unacked: the broker delivers it to the next process,
// which leads then without waiting for a message.
func (m *Machine) Leave() {
	if m.stopping && !slices.ContainsFunc(m.pairs, (*parkedQueues).wanted) {
		m.leader.leave()
	}
}

// Settled reports whether all publishings are confirmed and all fences have returned. If no worker has a message either,
// a stopped session can be closed, and no message is handled again. A fence can't return if Prefetch messages
// that are not settled are in front of it; the adapter waits for a limited time.
func (m *Machine) Settled() bool { return m.over || len(m.pending)+len(m.leader.fences) == 0 }

// Close ends the session. Out are the messages that workers have. They are still reported to this machine, and until then other
// sessions of the process deliver no message of their keys.
func (m *Machine) Close(out []Tag) {
	m.over, m.stopped = true, true
	kept := make(map[Tag]*item, len(out))
	for _, tag := range out {
		if it := m.items[tag]; it != nil {
			kept[tag] = it
			m.memory.out[it.msg.Key]++
		}
	}
	m.items, m.queues, m.waiting, m.pending, m.effects = kept, nil, nil, nil, nil
	if m.memory.current == m {
		m.memory.current = nil
	}
}
