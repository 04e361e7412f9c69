package ordered

import "time"

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
	*session
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

func newLeader(s *session) *leader {
	return &leader{session: s, last: s.now, fences: make(map[Name]func())}
}

// lead sends a tick if it is time, and steps down if nothing has arrived for long. Idle reports whether the session has nothing to do.
func (l *leader) lead(idle bool) {
	if l.awaiting {
		l.quiet += min(l.now.Sub(l.last), l.config.Tick/2) // not the time for which the process stood still
	}
	l.last = l.now
	if l.quiet > 4*l.config.Tick && l.unacked < l.config.Prefetch {
		l.stepDown(silence)
		return
	}
	if l.state.last > uint64(l.config.LogRecords) && !l.renewing { //nolint:gosec // not negative
		l.renewing = true
		l.emit(Renew{})
	}
	if !l.now.Before(l.nextTick(idle)) {
		l.tickSent, l.interval, l.awaiting = l.now, l.config.Idle(), true
		l.send(Source{}, ControlTick, l.name())
	}
}

// mostBusyTick is the longest time between two ticks while messages arrive. The leader keeps a tick unacked until the next one
// comes, behind all that was published in between, and the broker bounds how long a delivery may stay unacked.
const mostBusyTick = 30 * time.Second

// nextTick returns when the next tick is due. It is now before the first one.
func (l *leader) nextTick(idle bool) time.Time {
	next := l.tickSent.Add(l.interval)
	switch {
	case idle:
		return next
	case l.arrived.After(l.tickSent):
		return earlier(earlier(next, l.tickSent.Add(mostBusyTick)), l.arrived.Add(l.config.Tick))
	}
	return earlier(next, l.tickSent.Add(l.config.Tick))
}

// idle reports whether the leader has nothing but a tick.
func (l *leader) idle() bool {
	return l.tick != 0 && l.unacked == 1 && len(l.pending)+len(l.fences) == 0
}

// deposed counts a delivery, and steps down if it shows that another process leads or has led.
func (l *leader) deposed(it *item) bool {
	msg := &it.msg
	if epoch := max(msg.Name.Epoch, msg.Seq.Epoch, msg.Stamp.Epoch); epoch > l.state.epoch {
		l.memory.epoch = max(l.memory.epoch, min(epoch, maxEpoch))
		l.stepDown("another process has led")
		return true
	}
	if it.from.Pair != 0 {
		return false
	}
	l.arrived, l.awaiting, l.quiet = l.now, false, 0
	l.unacked++
	if msg.Redelivered && l.fresh {
		l.stepDown("the broker has requeued messages of this process")
		return true
	}
	if l.wary != (Name{}) && msg.Name != l.wary && l.unacked >= l.config.Prefetch {
		l.stepDown(noRoomForFence)
		return true
	}
	return false
}

// ticked keeps the newest tick.
func (l *leader) ticked(it *item) {
	old := l.tick
	l.tick = it.msg.Tag
	if it.msg.Name == (Name{}) && it.msg.Head != l.config.Process {
		l.standby = true
	}
	if old != 0 {
		l.ack(old)
	}
	l.releaseGuard()
}

// ack acks a delivery of the group's queue. Before the first tick, which may be far behind in the queue, each ack
// waits for the next one, so that something is unacked at any time.
func (l *leader) ack(tag Tag) {
	if l.tick == 0 && !l.stopping {
		tag, l.guard = l.guard, tag
	}
	if tag != 0 {
		l.unacked--
		l.emit(Ack{tag})
	}
}

func (l *leader) releaseGuard() {
	if guard := l.guard; guard != 0 {
		l.guard = 0
		l.unacked--
		l.emit(Ack{guard})
	}
}

// fence calls then when a message to this session has returned through the group's queue. The session led when it sent the
// message, so everything that was confirmed before is valid for any later leader.
func (l *leader) fence(then func()) Name {
	name := l.name()
	l.fences[name] = then
	l.send(Source{}, ControlFence, name)
	return name
}

func (l *leader) fenced(name Name) {
	if then := l.fences[name]; then != nil {
		delete(l.fences, name)
		then()
	}
}

const silence = "nothing arrived from the group's queue for a while"

const noRoomForFence = "the process stood still, and there is too much before the fence"

// stalled lets nothing be handed out until a fence has returned.
func (l *leader) stalled() {
	switch {
	case l.over:
	case l.unacked >= l.config.Prefetch-1:
		l.stepDown(noRoomForFence)
	default:
		var name Name
		name = l.fence(func() {
			if l.wary == name {
				l.wary = Name{}
			}
		})
		l.wary = name
	}
}

// leave acks the last tick, unless another process stands by.
func (l *leader) leave() {
	if l.tick != 0 && !l.standby {
		l.emit(Ack{l.tick})
		l.tick = 0
	}
}
