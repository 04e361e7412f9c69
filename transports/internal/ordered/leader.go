package ordered

import (
	"slices"
	"time"
)

// A leader has the state with which a session checks that it leads.
//
// The group's queue has a single active consumer, and that one leads; there is no second election. But the broker may
// requeue everything and deliver it to another process without telling this one. So:
//
//   - Every process sends a tick to the group's queue when it begins, and again every Config.Idle. The leader keeps the
//     newest unacked and acks the others. So the next leader finds at least one message.
//   - While there is something to do, the leader also sends one if nothing has arrived for Config.Tick. What arrives shows as
//     well as a tick that the process leads. A leader with nothing to do hands nothing out, so it needs no proof.
//   - A leader that receives nothing for four ticks after it has sent one, although the broker could deliver more, steps down.
//   - Nothing is given back to the group's queue one by one, so a consumer that becomes active first receives all that
//     was delivered before, before the takeover ends. If a redelivery arrives later, the broker has requeued messages of
//     this session. Another process may have led meanwhile, so the session steps down. As that one has kept a
//     message unacked at any time, its tick or the last one that it handled, there is such a redelivery.
//   - A leader that meets the epoch of a later one steps down.
//   - A fence is a control message from the session to itself. If it arrives, the session led when it sent it.
type leader struct {
	tickSent time.Time
	interval time.Duration // after which the next tick is due in any case
	arrived  time.Time     // when something arrived from the group's queue
	last     time.Time     // when Advance was called
	awaiting bool          // a tick was sent, and nothing has arrived since
	quiet    time.Duration // for which this process ran while it was awaiting
	standby  bool          // another process has sent a tick
	tick     Tag           // the newest, unacked; 0 before the first
	guard    Tag           // acked with the next message, or when there is a tick
	unacked  int           // deliveries of the group's queue
	fresh    bool          // all earlier deliveries have arrived, so a redelivery shows that the broker has requeued messages
	renewing bool
	fences   map[Name]func()
	wary     Name // nothing may be handed out before this fence has returned
}

func newLeader(now time.Time) leader {
	return leader{last: now, fences: make(map[Name]func())}
}

// lead sends a tick if it is time, and steps down if nothing has arrived for long.
func (m *Machine) lead(now time.Time) {
	l := &m.leader
	if l.awaiting {
		l.quiet += min(now.Sub(l.last), m.config.Tick/2) // not the time for which the process stood still
	}
	l.last = now
	if l.quiet > 4*m.config.Tick && l.unacked < m.config.Prefetch {
		m.stepDown(silence)
		return
	}
	if m.state.last > uint64(m.config.LogRecords) && !l.renewing { //nolint:gosec // not negative
		l.renewing = true
		m.emit(Renew{})
	}
	if !now.Before(m.nextTick()) {
		l.tickSent, l.interval, l.awaiting = now, m.config.Idle(), true
		m.send(Source{}, ControlTick, m.name())
	}
}

// mostBusyTick is the longest time between two ticks while messages arrive. The leader keeps a tick unacked until the next one
// comes, behind all that was published in between, and the broker bounds how long a delivery may stay unacked.
const mostBusyTick = 30 * time.Second

// nextTick returns when the next tick is due. It is now before the first one.
func (m *Machine) nextTick() time.Time {
	l := &m.leader
	next := l.tickSent.Add(l.interval)
	switch {
	case m.idle():
		return next
	case l.arrived.After(l.tickSent):
		return earlier(earlier(next, l.tickSent.Add(mostBusyTick)), l.arrived.Add(m.config.Tick))
	}
	return earlier(next, l.tickSent.Add(m.config.Tick))
}

// idle reports whether the session has nothing to do: it has nothing but a tick, and reads no parked queue. Keys may be blocked.
func (m *Machine) idle() bool {
	l := &m.leader
	return l.tick != 0 && l.unacked == 1 && len(m.queues)+len(m.items)+len(m.pending)+len(l.fences) == 0 &&
		!slices.ContainsFunc(m.pairs, func(p *parkedQueues) bool { return p.pass != nil || p.fencing || p.wanted() })
}

func (m *Machine) send(to Source, c Control, name Name) {
	m.emit(Send{Op: m.op(nil), To: to, Control: c, Name: name})
}

// deposed counts a delivery, and steps down if it shows that another process leads or has led.
func (m *Machine) deposed(it *item) bool {
	l, msg := &m.leader, &it.msg
	if epoch := max(msg.Name.Epoch, msg.Seq.Epoch, msg.Stamp.Epoch); epoch > m.state.epoch {
		m.memory.epoch = max(m.memory.epoch, min(epoch, maxEpoch))
		m.stepDown("another process has led")
		return true
	}
	if it.from.Pair != 0 {
		return false
	}
	l.arrived, l.awaiting, l.quiet = m.now, false, 0
	l.unacked++
	if msg.Redelivered && l.fresh {
		m.stepDown("the broker has requeued messages of this process")
		return true
	}
	if l.wary != (Name{}) && msg.Name != l.wary && l.unacked >= m.config.Prefetch {
		m.stepDown(noRoomForFence)
		return true
	}
	return false
}

// ticked keeps the newest tick.
func (m *Machine) ticked(it *item) {
	old := m.leader.tick
	m.leader.tick = it.msg.Tag
	if it.msg.Name == (Name{}) && it.msg.Head != m.config.Process {
		m.leader.standby = true
	}
	if old != 0 {
		m.ackTag(old)
	}
	m.releaseGuard()
}

// ackTag acks a delivery of the group's queue. Before the first tick, which may be far behind in the queue, each ack
// waits for the next one, so that something is unacked at any time.
func (m *Machine) ackTag(tag Tag) {
	l := &m.leader
	if l.tick == 0 && !m.stopping {
		tag, l.guard = l.guard, tag
	}
	if tag != 0 {
		l.unacked--
		m.emit(Ack{tag})
	}
}

func (m *Machine) releaseGuard() {
	if guard := m.leader.guard; guard != 0 {
		m.leader.guard = 0
		m.leader.unacked--
		m.emit(Ack{guard})
	}
}

// fence calls then when a message to this session has returned through the group's queue. The session led when it sent the
// message, so everything that was confirmed before is valid for any later leader.
func (m *Machine) fence(then func()) Name {
	name := m.name()
	m.leader.fences[name] = then
	m.send(Source{}, ControlFence, name)
	return name
}

func (m *Machine) fenced(name Name) {
	if then := m.leader.fences[name]; then != nil {
		delete(m.leader.fences, name)
		then()
	}
}

const silence = "nothing arrived from the group's queue for a while"

const noRoomForFence = "the process stood still, and there is too much before the fence"

// Stalled reports that the process stood still for so long that the broker may have closed its connection. Nothing is handed out
// until a fence has returned.
func (m *Machine) Stalled(now time.Time) {
	m.now = now
	switch {
	case m.over:
	case m.leader.unacked >= m.config.Prefetch-1:
		m.stepDown(noRoomForFence)
	default:
		var name Name
		name = m.fence(func() {
			if m.leader.wary == name {
				m.leader.wary = Name{}
			}
		})
		m.leader.wary = name
	}
}

// MayDeliver reports whether messages of Deliver effects may be handed to workers now. The adapter asks for each.
func (m *Machine) MayDeliver() bool { return !m.over && !m.stopping && m.leader.wary == Name{} }
