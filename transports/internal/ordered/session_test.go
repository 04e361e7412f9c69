package ordered

import (
	"fmt"
	"slices"
	"time"
)

// The adapter of the model: a process with workers, and the sessions that it has one after the other. It does what doc.go
// asks of an adapter.

type process struct {
	w       *world
	n       int
	memory  *Memory
	session *modelSession
	working []job // that workers have, also from sessions that are over
	tick    time.Time
}

type job struct {
	s   *modelSession
	tag Tag
	b   *body
}

// command is on its way to a queue.
type command struct {
	queue     any
	publishes bool
	do        func()
}

type step int

const (
	standby step = iota
	wantLog
	taking
	leading
)

type modelSession struct {
	w        *world
	p        *process
	id       string
	wire     []command // on their way to the broker
	inbox    []func()  // events on their way to the session
	confirms []func()  // confirmations, which may be earlier or later than deliveries
	cut      bool      // the broker has ended it
	gap      bool      // a publishing was lost
	closed   bool      // the process has ended it
	stopping bool
	step     step
	since    time.Time
	consumer *consumer
	passes   map[Source]*consumer
	starting []StartPass
	early    []*Message
	t        *Takeover
	read     []Tag
	m        *Machine
	bodies   map[Tag]*body
	from     map[Tag]Source
	ready    []Tag
}

func (p *process) name() string { return fmt.Sprintf("p%d", p.n) }

func (p *process) begin() {
	w := p.w
	w.sessions++
	s := &modelSession{
		w: w, p: p, id: fmt.Sprintf("s%d", w.sessions), bodies: make(map[Tag]*body), from: make(map[Tag]Source), passes: make(map[Source]*consumer),
		since: w.b.now,
	}
	s.consumer = &consumer{session: s, prefetch: w.config.Prefetch}
	w.b.group.consumers = append(w.b.group.consumers, s.consumer)
	p.session = s
	w.live = append(w.live, s)
	p.tick = w.b.now
}

func (s *modelSession) send(queue any, f func()) { s.wire = append(s.wire, command{queue, false, f}) }

// publish sends a publishing, which is confirmed if all before it were.
func (s *modelSession) publish(queue any, op uint64, f func()) {
	s.wire = append(s.wire, command{queue, true, func() {
		f()
		if !s.gap {
			s.confirm(op)
		}
	}})
}

// lose carries out n commands that are on the wire. Of the others, each queue gets some of the first that are for it,
// now and then.
func (s *modelSession) lose(n int) {
	n = min(n, len(s.wire))
	for _, c := range s.wire[:n] {
		c.do()
	}
	left := make(map[any]int)
	for _, c := range s.wire[n:] {
		if _, known := left[c.queue]; !known {
			left[c.queue] = max(0, s.w.rand.IntN(8)-4)
		}
		if left[c.queue] > 0 {
			left[c.queue]--
			c.do()
		} else if c.publishes {
			s.gap = true
		}
	}
	s.wire = nil
}

// end ends the session from the side of the process. Of what is on the wire, n commands reach the broker.
func (s *modelSession) end(n int) {
	if s.closed {
		return
	}
	s.closed = true
	s.w.trace("%s ends, cut %v, %d of %d", s.id, s.cut, n, len(s.wire))
	if !s.cut {
		s.lose(n)
	}
	s.w.b.close(s)
	s.wire, s.inbox, s.confirms = nil, nil, nil
	s.w.live = slices.DeleteFunc(s.w.live, func(o *modelSession) bool { return o == s })
	if s.m != nil {
		var out []Tag
		for _, j := range s.p.working {
			if j.s == s {
				out = append(out, j.tag)
			}
		}
		s.m.Close(out)
	}
	if s.p.session == s {
		s.p.begin()
	}
}

// arrived is a delivery that the process receives.
func (s *modelSession) arrived(c *consumer, tag Tag, msg queued) {
	s.bodies[tag], s.from[tag] = msg.body, c.from
	s.w.trace("%s <- %+v %+v", s.id, c.from, msg)
	arrived := &Message{
		Tag: tag, Key: msg.key, Print: printOf(msg.print), Size: 10, Redelivered: msg.redelivered || msg.repeat,
		Control: msg.control, Name: msg.name, Head: msg.head, Seq: msg.seq, Stamp: msg.stamp,
	}
	switch {
	case c.log:
		s.record(tag, msg)
	case s.step == leading:
		s.m.Arrived(s.w.b.now, c.from, arrived)
		s.effects()
	case s.t != nil:
		s.t.Arrived(s.w.b.now, arrived)
		s.effects()
	default:
		s.early = append(s.early, arrived)
		if s.step == standby {
			s.step, s.since = wantLog, s.w.b.now
		}
	}
}

// takeover takes the next step to the lead.
func (s *modelSession) takeover() {
	b := s.w.b
	if s.cut || s.closed || s.stopping {
		return
	}
	switch s.step {
	case wantLog:
		if len(b.log.consumers) == 0 {
			c := &consumer{session: s, prefetch: 1 << 20, log: true}
			b.log.consumers = append(b.log.consumers, c)
			s.step = taking
			config := s.w.config
			config.Process = s.p.name()
			s.t = NewTakeover(config, s.p.memory, s.id, b.now)
			for _, msg := range s.early {
				s.t.Arrived(b.now, msg)
			}
			s.effects()
		}
	case taking:
		if !s.t.Ready() {
			break
		}
		counts := make(map[Source]int)
		for from, q := range b.parked {
			if len(q.consumers) > 0 {
				s.late()
				return
			}
			counts[from] = len(q.ready)
		}
		s.lead(counts)
		return
	}
	s.late()
}

func (s *modelSession) lead(counts map[Source]int) {
	for len(s.inbox) > 0 { // the answer of the group's queue comes behind what it has delivered
		f := s.inbox[0]
		s.inbox = s.inbox[1:]
		f()
	}
	for _, tag := range s.read {
		s.send(s.w.b.log, func() { s.w.b.log.ack(tag, s) })
	}
	s.send(s.w.b.log, func() {
		q := s.w.b.log
		for _, c := range slices.Clone(q.consumers) {
			if c.session == s {
				q.cancel(c)
				q.takeBack(c)
			}
		}
	})
	s.step = leading
	if s.w.epochs[s.epoch()] && !s.w.logLost || s.epoch() < s.w.epoch && !s.w.faulty {
		s.w.fail("epoch %d after %d", s.epoch(), s.w.epoch)
	}
	s.w.epochs[s.epoch()] = true
	s.w.epoch = max(s.w.epoch, s.epoch())
	s.w.trace("%s leads in epoch %d", s.id, s.epoch())
	s.m = New(s.t, counts, s.w.b.now)
	s.early = nil
	s.effects()
}

func (s *modelSession) late() {
	if s.step != standby && s.step != leading && s.w.b.now.Sub(s.since) > 30*time.Second {
		s.w.stepDowns++
		s.end(0)
	}
}

func (s *modelSession) epoch() uint64 { return s.t.state.epoch }

func (s *modelSession) record(tag Tag, msg queued) {
	if s.step != taking {
		return
	}
	if !s.t.Compacts() {
		s.read = append(s.read, tag)
	}
	if err := s.t.Read(s.w.b.now, msg.record); err != nil {
		s.w.fail("log: %v", err)
	}
	s.effects()
}

// pass tries to begin passes.
func (s *modelSession) pass() {
	if len(s.starting) == 0 || s.m == nil || s.cut || s.closed {
		return
	}
	p := s.starting[0]
	from := Source(p)
	q, other := s.w.b.parked[from], s.w.b.parked[Source{p.Pair, p.Side.other()}]
	if len(q.consumers) > 0 {
		return
	}
	s.starting = s.starting[1:]
	c := &consumer{session: s, prefetch: 5, from: from}
	q.consumers = append(q.consumers, c)
	s.passes[from] = c
	empty := len(other.ready) == 0
	s.inbox = append(s.inbox, func() { // before any delivery
		s.m.PassStarted(s.w.b.now, p.Pair, empty)
		s.effects()
	})
}

// effects carries out what the machine wants.
func (s *modelSession) effects() {
	var effects []Effect
	switch {
	case s.closed:
		return
	case s.m != nil:
		effects = s.m.Effects()
	case s.t != nil:
		effects = s.t.Effects()
	}
	for _, e := range effects {
		s.w.effects++
		if wr, ok := e.(Write); ok {
			s.w.trace("%s Write %d %s", s.id, wr.Op, wr.Record.Encode())
		} else {
			s.w.trace("%s %T %+v", s.id, e, e)
		}
		switch e := e.(type) {
		case Deliver:
			if e.Fence != s.epoch() {
				s.w.fail("fence %d in epoch %d", e.Fence, s.epoch())
			}
			s.ready = append(s.ready, e.Tag)
		case Ack:
			s.send(s.w.b.queue(s.from[e.Tag]), func() { s.w.b.queue(s.from[e.Tag]).ack(e.Tag, s) })
		case Copy:
			s.sendCopy(e)
		case Send:
			s.publish(s.w.b.queue(e.To), e.Op, func() {
				s.w.b.control(s.w.b.queue(e.To), body{control: e.Control, name: e.Name, head: e.Head})
			})
		case Write:
			r := e.Record.Encode()
			s.publish(s.w.b.log, e.Op, func() { s.w.b.log.publish(&body{record: r}) })
		case Return:
			s.send(s.w.b.group, func() { s.w.b.group.giveBackOne(e.Tag, s) })
		case Renew:
			s.stop()
			return
		case StartPass:
			s.starting = append(s.starting, e)
		case EndPass:
			from := Source(e)
			c := s.passes[from]
			s.send(s.w.b.parked[from], func() {
				q := s.w.b.parked[from]
				q.cancel(c)
				if s.w.faulty && s.w.rand.IntN(4) == 0 {
					q.loseAcks(1 + s.w.rand.IntN(3))
				}
			})
			s.w.passes++
		case StepDown:
			s.w.stepDowns++
			s.w.reasons[e.Reason]++
			if s.w.reasons[silence] > 0 { // the history was so slow that ticks were late
				s.w.faulty = true
			}
			s.end(s.w.rand.IntN(10))
			return
		}
	}
	if s.m != nil {
		s.check()
	}
}

func (s *modelSession) confirm(op uint64) {
	s.confirms = append(s.confirms, func() {
		s.w.trace("%s confirmed %d", s.id, op)
		if s.m != nil {
			s.m.Confirmed(s.w.b.now, op)
		} else {
			s.t.Confirmed(op)
		}
		s.effects()
	})
}

func (s *modelSession) sendCopy(e Copy) {
	c := *s.bodies[e.Tag]
	c.head, c.seq, c.stamp, c.repeat = e.Head, e.Seq, e.Stamp, e.Repeat
	after := e.After
	var queue any = e.To
	if e.To == ToParked {
		queue = s.w.b.parked[Source{e.Pair, e.Side}]
	}
	s.publish(queue, e.Op, func() {
		b := s.w.b
		switch e.To {
		case ToDelay:
			c.due = b.now.Add(after)
			b.delay = append(b.delay, &c)
		case ToPoison:
			b.poison = append(b.poison, &c)
			s.w.poisoned[c.id] = true
		case ToParked:
			b.parked[Source{e.Pair, e.Side}].publish(&c)
			if e.Stamp == (Name{}) {
				s.w.parked++
			}
		}
	})
}

// check checks what must hold of a machine at any time.
func (s *modelSession) check() {
	if s.m.over {
		return
	}
	total := 0
	for _, k := range s.m.queues {
		n, _ := k.heldUp()
		total += n
	}
	if total > s.m.config.Held {
		s.w.fail("%d messages held up", total)
	}
	if len(s.m.state.keys) > s.m.config.MaxKeys+s.w.imports && !s.w.logLost {
		s.w.fail("%d keys known, at most %d", len(s.m.state.keys), s.m.config.MaxKeys)
	}
}

// start hands a message to a worker.
func (s *modelSession) start() {
	if s.m == nil || len(s.ready) == 0 || s.closed || !s.m.MayDeliver() {
		return
	}
	tag := s.ready[0]
	s.ready = s.ready[1:]
	b := s.bodies[tag]
	if b.key != "" {
		for _, j := range s.p.working {
			if j.b.key == b.key {
				s.w.fail("two messages of key %s are out in one process", b.key)
			}
		}
	}
	s.w.trace("%s works on %d, tag %d", s.id, b.id, tag)
	s.p.working = append(s.p.working, job{s, tag, b})
}

// stop ends a session in good order, as far as it is.
func (s *modelSession) stop() {
	if !s.stopping && !s.closed {
		s.stopping = true
		if s.m != nil {
			s.m.Stop(s.w.b.now)
			s.effects()
		}
	}
}

// stopped ends a session that has stopped.
func (s *modelSession) stopped() {
	busy := slices.ContainsFunc(s.p.working, func(j job) bool { return j.s == s })
	if !s.stopping || busy || len(s.wire) > 0 {
		return
	}
	settled := s.m == nil || s.m.Settled()
	if !settled && len(s.m.pending) == 0 && s.m.leader.unacked >= s.m.config.Prefetch {
		s.w.faulty, settled = true, true // as if the time to stop were over
	}
	if settled {
		s.end(0)
	}
}
