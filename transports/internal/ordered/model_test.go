package ordered

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The model test plays random histories of a group on a simulated broker and checks the promises.

type world struct {
	b         *broker
	rand      *rand.Rand
	config    Config
	procs     []*process
	live      []*modelSession
	tags      Tag
	faulty    bool
	bad       int // percent of messages that are poisoned, and that wait for long
	longest   int // milliseconds
	faultRate int
	anonymous bool // some messages have no id
	sweeps    int
	logLost   bool // somebody deletes the log, once; the order is lost then
	draining  bool // the history ends: handlers succeed, and nothing breaks any more
	failed    string
	traced    bool
	published []int // copies of each id, from 1
	keyOf     []string
	imported  map[int]bool
	order     map[string][]int // ids of a key, in the order of their publishing
	firsts    map[string]int   // how many of them are done at the front
	handled   map[int]int
	dropped   map[int]bool
	poisoned  map[int]bool
	epoch     uint64
	epochs    map[uint64]bool

	sessions, stepDowns, passes, parked, faults, effects, imports, again int
	reasons                                                              map[string]int
}

func (w *world) fail(format string, args ...any) {
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, args...)
	}
}

// trace prints what happens in a single history.
func (w *world) trace(format string, args ...any) {
	if w.traced {
		fmt.Printf(w.b.now.Format("05.000 ")+format+"\n", args...)
	}
}

func newWorld(seed uint64) *world {
	w := &world{
		rand: rand.New(rand.NewPCG(seed, 1)), imported: make(map[int]bool), order: make(map[string][]int),
		firsts: make(map[string]int), handled: make(map[int]int), dropped: make(map[int]bool), poisoned: make(map[int]bool),
		epochs: make(map[uint64]bool), published: []int{0}, keyOf: []string{""}, reasons: make(map[string]int),
	}
	r := w.rand
	w.faulty = r.IntN(5) > 0
	w.bad, w.longest, w.faultRate = 5+r.IntN(25), 1+r.IntN(8000), 1+r.IntN(3)
	w.config = Config{
		Park: r.IntN(6) > 0, Prefetch: 12, Held: 1 + r.IntN(7), HeldBytes: 1 << 20, MaxKeys: 100, MaxKeyBytes: 1 << 20, LogRecords: 20 + r.IntN(200),
		Pairs: 1 + r.IntN(2), Short: time.Second, Tick: time.Second,
	}
	idle := time.Duration(1+r.IntN(30)) * time.Second
	w.config.Idle = func() time.Duration { return idle }
	if r.IntN(8) == 0 {
		w.config.MaxKeys = 2
	}
	w.anonymous, w.logLost = r.IntN(4) == 0, w.faulty && r.IntN(10) == 0
	if r.IntN(8) == 0 {
		w.config.HeldBytes = 30
	}
	w.b = newBroker(2)
	for n := range 3 {
		p := &process{w: w, n: n, memory: NewMemory()}
		w.procs = append(w.procs, p)
		p.begin()
	}
	return w
}

func (w *world) publish() {
	r := w.rand
	id := len(w.published)
	if len(w.published) > 1 && r.IntN(15) == 0 { // a publisher repeats what it got no confirmation for
		id = len(w.published) - 1
	}
	if id < len(w.published) {
		if w.imported[id] {
			return
		}
	} else {
		key := string(rune('a' + r.IntN(4)))
		if r.IntN(12) == 0 {
			key = ""
		}
		w.add(key)
	}
	w.published[id]++
	b := &body{id: id, key: w.keyOf[id], print: uint64(id)}
	if w.anonymous && id%5 == 0 {
		b.print = 0
	}
	w.b.group.publish(b)
}

func (w *world) add(key string) int {
	id := len(w.published)
	w.published = append(w.published, 0)
	w.keyOf = append(w.keyOf, key)
	w.order[key] = append(w.order[key], id)
	return id
}

// done checks the order when a message is handled.
func (w *world) done(id int) {
	w.handled[id]++
	if w.handled[id] > 1 {
		w.again++
		if !w.faulty && w.handled[id] > w.published[id] {
			w.fail("message %d was handled %d times", id, w.handled[id])
		}
		return
	}
	key := w.keyOf[id]
	if key == "" || w.imported[id] || w.dropped[id] || w.logLost {
		return
	}
	ids := w.order[key]
	for _, before := range ids[w.firsts[key]:] {
		if before == id {
			break
		}
		if w.handled[before] == 0 && !w.dropped[before] && (w.config.Park || !w.poisoned[before]) {
			w.fail("message %d of key %s was handled before %d", id, key, before)
			return
		}
	}
	for w.firsts[key] < len(ids) && (w.handled[ids[w.firsts[key]]] > 0 || w.dropped[ids[w.firsts[key]]]) {
		w.firsts[key]++
	}
}

// work lets a worker end.
func (w *world) work(p *process) {
	if len(p.working) == 0 {
		return
	}
	i := w.rand.IntN(len(p.working))
	j := p.working[i]
	p.working = slices.Delete(p.working, i, i+1)
	m, now := j.s.m, w.b.now
	outcome := w.rand.IntN(100)
	if w.draining {
		outcome = 99
	}
	w.trace("%s worker ends %d tag %d outcome %d", j.s.id, j.b.id, j.tag, outcome)
	switch {
	case outcome < w.bad:
		m.Poisoned(now, j.tag)
	case outcome < 2*w.bad:
		m.Failed(now, j.tag, 1001*time.Millisecond+time.Duration(w.rand.IntN(w.longest))*time.Millisecond)
	case outcome < 2*w.bad+12:
		m.Failed(now, j.tag, time.Duration(w.rand.IntN(1000))*time.Millisecond)
	default:
		w.done(j.b.id)
		m.Handled(now, j.tag)
	}
	j.s.effects()
	if c := p.memory.current; c != nil && c != m {
		p.session.effects()
	}
}

// operate does what operators do.
func (w *world) operate() {
	b, r := w.b, w.rand
	if w.config.Park && !w.draining && r.IntN(10) == 0 && w.imports < 2 {
		id := w.add(string(rune('a' + r.IntN(4))))
		w.imported[id] = true
		w.imports++
		w.published[id]++
		head := "op-" + strconv.Itoa(id)
		w.poisoned[id] = true
		b.poison = append(b.poison, &body{id: id, key: w.keyOf[id], print: uint64(id), head: head})
		b.control(b.group, body{control: ControlBlock, key: w.keyOf[id], head: head})
		return
	}
	if len(b.poison) == 0 {
		return
	}
	i := r.IntN(len(b.poison))
	msg := b.poison[i]
	if !w.draining && r.IntN(3) == 0 {
		w.dropped[msg.id] = true
		b.control(b.group, body{control: ControlDrop, key: msg.key, head: msg.head})
	} else {
		replay := *msg
		b.group.publish(&replay)
	}
	if w.faulty && !w.draining && r.IntN(6) == 0 {
		return // the operator's process has crashed
	}
	b.poison = slices.Delete(b.poison, i, i+1)
}

// breakSomething is a fault.
func (w *world) breakSomething() {
	r := w.rand
	if len(w.live) == 0 {
		return
	}
	s := w.live[r.IntN(len(w.live))]
	if c := w.b.group.active(); c != nil && r.IntN(3) > 0 {
		s = c.session
	}
	w.faults++
	if w.logLost && len(w.b.log.consumers) == 0 && r.IntN(3) == 0 {
		w.b.log.ready = nil
	}
	w.trace("fault at %s", s.id)
	wire := 0
	if len(s.wire) > 0 {
		wire = r.IntN(len(s.wire) + 1)
	}
	switch r.IntN(6) {
	case 0: // kill -9
		p := s.p
		p.working = nil
		p.memory = NewMemory()
		for _, o := range slices.Clone(w.live) {
			if o.p == p {
				o.end(wire)
			}
		}
	case 1: // the process sees the end of its connection
		s.end(wire)
	case 2: // the process sees it later
		if !s.cut {
			s.lose(wire)
			w.b.close(s)
		}
	case 3, 4: // the group's queue takes everything back, and the connection is intact
		if !s.cut {
			c := s.consumer
			w.b.group.takeBack(c)
			w.b.group.cancel(c)
			w.b.group.consumers = append(w.b.group.consumers, c)
			c.suspended = 1 + r.IntN(200)
		}
	case 5: // a parked queue or the log does
		for _, q := range w.b.queues()[1:] {
			if len(q.consumers) > 0 && r.IntN(2) == 0 {
				q.takeBack(q.consumers[0])
			}
		}
	}
}

// timers advances the time and calls what is due.
func (w *world) timers(d time.Duration) {
	w.b.advance(d)
	for _, s := range slices.Clone(w.live) {
		if s.closed {
			continue
		}
		switch {
		case s.cut && w.rand.IntN(20) == 0:
			s.end(0)
		case s.m != nil:
			s.m.Advance(w.b.now)
			s.effects()
		}
	}
	for _, p := range w.procs {
		if !w.b.now.Before(p.tick) && p.session.step != leading {
			p.tick = w.b.now.Add(w.config.Idle())
			s := p.session
			s.send(w.b.group, func() { w.b.control(w.b.group, body{control: ControlTick, head: p.name()}) })
		}
	}
}

func (w *world) step() {
	r := w.rand
	for _, c := range w.b.group.consumers {
		c.suspended = max(c.suspended-1, 0)
	}
	s := w.live[r.IntN(len(w.live))]
	if c := w.b.group.active(); c != nil && r.IntN(2) == 0 {
		s = c.session
	}
	switch n := r.IntN(100); {
	case n < 25:
		for range 1 + r.IntN(6) {
			if len(s.wire) == 0 || s.cut {
				break
			}
			c := s.wire[0]
			s.wire = s.wire[1:]
			c.do()
		}
		s.stopped()
	case n < 50:
		for range 1 + r.IntN(6) {
			if s.closed {
				break
			}
			from := &s.inbox
			if r.IntN(2) == 0 {
				from = &s.confirms
			}
			if len(*from) > 0 {
				f := (*from)[0]
				*from = (*from)[1:]
				f()
			}
		}
	case n < 70:
		for _, q := range w.b.queues() {
			for range r.IntN(4) {
				q.deliver()
			}
		}
	case n < 78:
		s.start()
	case n < 86:
		w.work(s.p)
	case n < 91:
		s.takeover()
		s.pass()
	case n < 93 || w.draining:
		w.timers(time.Duration(r.IntN(200)) * time.Millisecond)
	case n < 96:
		w.operate()
	case n < 97 && r.IntN(4) == 0:
		if s.m != nil && w.faulty {
			s.m.Stalled(w.b.now)
			s.effects()
		}
	case n < 98 && r.IntN(4) == 0:
		s.stop()
	case w.faulty && n >= 98 && r.IntN(6) < w.faultRate:
		w.breakSomething()
	default:
		w.timers(time.Duration(r.IntN(20)) * time.Millisecond)
	}
}

// run plays a history.
func (w *world) run(steps int) {
	w.play(steps)
	w.end()
}

func (w *world) play(steps int) {
	for n := 0; n < steps && w.failed == ""; n++ {
		if w.rand.IntN(8) == 0 && n < steps*3/4 {
			w.publish()
		}
		w.step()
	}
}

// end lets all work end, and checks that nothing is lost.
func (w *world) end() {
	w.draining = true
	if w.config.MaxKeys < 100 && !w.faulty { // the group may have stopped; its operator raises the limit
		w.faulty = true
	}
	if w.config.MaxKeys < 100 {
		w.config.MaxKeys = 100
		for _, p := range w.procs {
			p.session.end(0)
		}
	}
	for n := 0; w.failed == ""; n++ {
		w.step()
		if n%50 == 0 {
			if len(w.b.poison) > 0 {
				w.operate()
			}
			if w.idle() {
				if !w.logLost || w.sweeps == 3 || w.nothingParked() {
					break
				}
				w.sweeps++ // the next leader hands out what the log does not know
				for _, p := range w.procs {
					p.session.end(0)
				}
			}
		}
		if n == 200_000 && w.logLost { // an import that a session had before the log was deleted may block its key again
			w.config.Park = false
			for _, p := range w.procs {
				p.session.end(0)
			}
		}
		if n > 400_000 {
			w.fail("no end: %s", w.describe())
		}
	}
	for id := 1; id < len(w.published); id++ {
		if w.handled[id] == 0 && !w.dropped[id] && w.failed == "" {
			w.fail("message %d was lost", id)
		}
	}
	if !w.faulty && w.stepDowns > 0 {
		w.fail("a leader has stepped down without a fault: %v", w.reasons)
	}
}

func (w *world) nothingParked() bool {
	for _, q := range w.b.parked {
		if len(q.ready)+len(q.out) > 0 {
			return false
		}
	}
	return true
}

func (w *world) idle() bool {
	if len(w.b.poison)+len(w.b.delay) > 0 {
		return false
	}
	for i, q := range w.b.queues() {
		if i > 0 { // what is in the parked queues when no key is known are leftovers
			continue
		}
		for _, m := range q.ready {
			if m.id != 0 {
				return false
			}
		}
		for _, m := range q.out {
			if m.id != 0 {
				return false
			}
		}
	}
	c := w.b.group.active()
	if c == nil {
		return false
	}
	s := c.session
	return s.m != nil && !s.cut && len(s.wire) == 0 && len(s.inbox)+len(s.confirms) == 0 && len(s.m.state.keys) == 0 && s.m.Settled()
}

func (w *world) describe() string {
	text := fmt.Sprintf("published %d, handled %d, poison %d, delay %d, reasons %v\n", len(w.published)-1, len(w.handled), len(w.b.poison), len(w.b.delay), w.reasons)
	for i, q := range w.b.queues() {
		text += fmt.Sprintf("queue %d: ready %d, out %d, consumers %d\n", i, len(q.ready), len(q.out), len(q.consumers))
	}
	for _, s := range w.live {
		text += fmt.Sprintf("session %s step %d cut %v stopping %v wire %d inbox %d", s.id, s.step, s.cut, s.stopping, len(s.wire), len(s.inbox))
		if s.m != nil {
			text += fmt.Sprintf(" stats %+v leader %+v ready %d starting %d", s.m.Stats(), s.m.leader.wary, len(s.ready), len(s.starting))
			for key, k := range s.m.state.keys {
				text += fmt.Sprintf("\n  key %s: pair %d since %d away %d", key, k.pair, k.since, len(k.away))
				for _, a := range k.away {
					text += fmt.Sprintf(" %+v", *a)
				}
				if q := s.m.queues[key]; q != nil {
					text += fmt.Sprintf(" heads %d parked %d here %d parking %v out %d", len(q.heads), len(q.parked), len(q.here), q.parking, s.p.memory.out[key])
					if q.current != nil {
						text += fmt.Sprintf(" current %+v", *q.current)
					}
				}
			}
			for _, p := range s.m.pairs {
				text += fmt.Sprintf("\n  pair %+v pass %+v", *p, p.pass)
			}
		}
		text += "\n"
	}
	return text
}

// histories returns how many histories a test plays, and the seed of the first. LEAT_TEST_SEED asks for the history of one seed,
// and LEAT_TEST_HISTORIES for more that follow.
func histories(t *testing.T) (first, n uint64) {
	first, n = 1, 20_000
	switch {
	case os.Getenv("LEAT_TEST_LONG") != "":
		n = 100_000
	case testing.Short():
		n = 500
	case raceEnabled:
		n = 2_000
	}
	if seed := os.Getenv("LEAT_TEST_SEED"); seed != "" {
		n = 1
		first = number(t, seed)
	}
	if many := os.Getenv("LEAT_TEST_HISTORIES"); many != "" {
		n = number(t, many)
	}
	return first, n
}

func number(t *testing.T, text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMachine_keepsItsPromisesInRandomHistories(t *testing.T) {
	first, n := histories(t)
	var next atomic.Uint64
	var handled, again, passes, parked, faults, stepDowns, clean atomic.Int64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for !t.Failed() {
				i := next.Add(1) - 1
				if i >= n {
					return
				}
				seed := first + i
				w := newWorld(seed)
				w.traced = os.Getenv("LEAT_TEST_TRACE") != ""
				w.run(600)
				if w.failed != "" {
					t.Errorf("LEAT_TEST_SEED=%d: %s", seed, w.failed)
					return
				}
				handled.Add(int64(len(w.handled)))
				again.Add(int64(w.again))
				passes.Add(int64(w.passes))
				parked.Add(int64(w.parked))
				faults.Add(int64(w.faults))
				stepDowns.Add(int64(w.stepDowns))
				if !w.faulty {
					clean.Add(1)
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d histories, %d of them without faults: %d messages handled, %d of them again, %d parked in %d passes, %d faults, %d step-downs",
		n, clean.Load(), handled.Load(), again.Load(), parked.Load(), passes.Load(), faults.Load(), stepDowns.Load())
}
