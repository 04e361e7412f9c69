package ordered

import (
	"strconv"
	"time"
)

// A Takeover makes the decisions of a session that has received its first delivery from the group's queue and is to lead.
//
// The group's queue determines which session may lead, and the log which one does. Both must agree: if a process claimed an epoch
// after the queue has requeued its deliveries, the records of the real leader would be void, and its acks would not. So
// these are the steps:
//
//  1. Consume the log, exclusively, and read up to a first claim, which is always refused.
//  2. Prove that the queue still delivers to this session: send a fence to it and wait until it arrives. If there is
//     no room for it, because Prefetch messages are unacked, give the last of them back: it returns to its position, and is
//     redelivered at once to the active consumer. (Not all: some brokers do not keep the order of many.)
//  3. Claim the next epoch, and read up to the claim. It contains the epoch that it follows, so it is refused if another session has
//     claimed one since step 1; then step 2 follows again.
//  4. Write a snapshot.
//
// A session that led before has lost the queue when step 2 ends: its acks there are void, or it has stepped down, because the queue
// redelivers a message when the session becomes active again.
//
// A Takeover has no clock and is not safe for concurrent use.
type Takeover struct {
	config   Config
	memory   *Memory
	writer   string
	state    *State
	effects  []Effect
	ops      uint64
	first    []*Message
	adopted  []*Message
	fence    string // that is awaited
	fences   int
	returned Print  // the print of the message that was given back
	current  string // the claim that is awaited
	claims   int
	stage    stage
}

type stage int

const (
	probing   stage = iota // the first claim is not read yet
	proving                // waits for the fence
	returning              // waits for the message that was given back
	claiming               // the claim is not read yet
	writing                // the snapshot is not confirmed yet
	ready
)

// NewTakeover begins a takeover. The log is being consumed by this session only. The writer is a text that no other
// session has, of at most 200 bytes.
func NewTakeover(config Config, memory *Memory, writer string, now time.Time) *Takeover {
	t := &Takeover{config: config, memory: memory, writer: writer, state: NewState()}
	t.claim(now)
	return t
}

// Effects returns the effects since the last call: Write, Send, Return and StepDown. It must be called after each event.
func (t *Takeover) Effects() []Effect {
	effects := t.effects
	t.effects = nil
	return effects
}

// Arrived reports a delivery of the group's queue.
func (t *Takeover) Arrived(now time.Time, msg *Message) {
	t.first = append(t.first, msg)
	switch {
	case t.stage == returning && (!msg.Redelivered || msg.Print != t.returned):
		t.effects = append(t.effects, StepDown{"the broker has requeued messages of this process"})
	case t.stage == returning, t.stage == proving && msg.Control == ControlFence && msg.Head == t.fence:
		t.stage = claiming
		t.claim(now)
	case t.stage == proving:
		t.checkRoom()
	}
}

// prove sends a fence, which proves that the queue delivers to this session.
func (t *Takeover) prove() {
	t.stage = proving
	t.fences++
	t.ops++
	t.fence = t.writer + "/" + strconv.Itoa(t.fences)
	t.effects = append(t.effects, Send{Op: t.ops, Control: ControlFence, Head: t.fence})
	t.checkRoom()
}

func (t *Takeover) checkRoom() {
	if len(t.first) >= t.config.Prefetch {
		last := t.first[len(t.first)-1]
		t.first, t.stage, t.returned = t.first[:len(t.first)-1], returning, last.Print
		t.effects = append(t.effects, Return{last.Tag})
	}
}

// claim writes a claim. Each has a different name, because the broker may redeliver an earlier one.
func (t *Takeover) claim(now time.Time) {
	t.claims++
	t.current = t.writer + "/" + strconv.Itoa(t.claims)
	t.write(t.state.claim(t.current, t.memory.epoch, now))
}

func (t *Takeover) write(r *Record) {
	t.ops++
	t.effects = append(t.effects, Write{t.ops, r})
}

// Read reports a message of the log. It returns an error if the message is not a valid record; then it is acked like all
// others, and the takeover goes on. A message that is read while [Takeover.Compacts] is true must not be acked.
func (t *Takeover) Read(now time.Time, body []byte) error {
	r, err := Decode(body)
	if err != nil || t.Compacts() {
		return err
	}
	if err = t.state.Apply(r); err != nil || r.Kind != kindEpoch || r.Writer != t.current {
		return err
	}
	switch {
	case t.stage == probing:
		t.prove()
	case t.stage == claiming && t.state.owner == t.current:
		t.stage = writing
		for _, r := range t.state.Snapshot(t.config.Park) {
			t.write(r)
		}
	case t.stage == claiming:
		t.prove()
	}
	return nil
}

// Compacts reports whether this session has the epoch. The snapshot replaces the records that were read before; later ones are the
// snapshot itself, or void.
func (t *Takeover) Compacts() bool { return t.stage >= writing }

// Confirmed reports that the broker has confirmed all publishings up to op.
func (t *Takeover) Confirmed(op uint64) {
	if t.stage == writing && op >= t.ops {
		t.stage = ready
	}
}

// Adopt adds messages that an earlier version of leat kept for the group, sorted by key. They come before the messages of the
// group's queue. Each is acked when it is handled or copied elsewhere.
func (t *Takeover) Adopt(msgs []*Message) { t.adopted = append(t.adopted, msgs...) }

// Ready reports whether [New] may be called, as soon as no parked queue has a consumer.
func (t *Takeover) Ready() bool { return t.stage == ready }

// Pairs returns how many pairs of parked queues there are: those of the configuration, and others in which earlier
// processes have parked. It may be called when the takeover is ready.
func (t *Takeover) Pairs() int { return max(t.config.Pairs, t.state.pairCount()) }
