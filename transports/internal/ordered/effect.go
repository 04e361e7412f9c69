package ordered

import "time"

// A Tag is the adapter's handle of one delivery of the broker. It is not 0, and unique within a session over all
// queues. The machine only compares it.
type Tag uint64

// A Side is one of the two parked queues of a pair: 0 is a, 1 is b.
type Side int

func (s Side) other() Side { return 1 - s }
func (s Side) valid() bool { return s == 0 || s == 1 }

// A Source is the queue that a message was delivered from: the group's, or one of a pair of parked queues.
type Source struct {
	Pair int // 0: the group's queue; Adopted: see [Takeover.Adopt]
	Side Side
}

// Adopted is the pair of the source of a message that was passed to [Takeover.Adopt].
const Adopted = -1

// Control says what a control message in the group's queue or in a parked queue is for. It is the value of a header.
type Control string

// The control messages. ControlNone marks a message of the application.
const (
	ControlNone   Control = ""
	ControlTick   Control = "tick"   // from each process of the group; only its arrival counts
	ControlFence  Control = "fence"  // from the leader to itself: if it arrives, the process led when it sent it
	ControlMarker Control = "marker" // from the leader to a parked queue: the end of what a pass reads
	ControlDrop   Control = "drop"   // from an operator: the poisoned message Head was dropped
	ControlBlock  Control = "block"  // from an operator: the message Head of this key was put into the poison queue
)

// A Message describes a delivery.
type Message struct {
	Tag         Tag
	Key         string // "" if the message has no key: it is not ordered, and never parked
	Print       Print  // of its id and body; zero if it has no id
	Size        int    // bytes that it takes here
	Redelivered bool   // the broker delivered it before; for a parked copy, also if Copy.Repeat was set

	Due time.Time // of an adopted message; zero: now

	Control Control
	Name    Name   // of a fence, a marker, or a leader's tick
	Head    string // the name under which it was sent away, or which a drop or block is about
	Seq     Name   // of a parked copy
	Stamp   Name   // the pass that moved it to its queue, or zero
}

// A Target is the destination of a copy.
type Target int

// The targets of a [Copy].
const (
	ToDelay  Target = iota // a delay, from which it returns to the group's queue
	ToPoison               // the poison queue, from which an operator may replay it
	ToParked               // a parked queue, in which it waits until its key is released
)

// An Effect is something that the adapter must do. Effects are carried out in their order. Those with an Op are
// publishings; see [Machine.Confirmed].
type Effect interface{ effect() }

// Deliver makes the message ready for a worker. It may be delivered several times: once more after each short wait.
type Deliver struct {
	Tag   Tag
	Fence uint64 // the fencing number: it grows with each change of consumer
}

// Ack acks a delivery.
type Ack struct{ Tag Tag }

// Copy publishes a copy of an unacked delivery. The headers Head, Seq, Stamp and Repeat of the delivery are not kept:
// the copy has exactly those given here.
type Copy struct {
	Op     uint64
	Tag    Tag
	To     Target
	After  time.Duration // ToDelay
	Pair   int           // ToParked
	Side   Side
	Head   string // ToDelay, ToPoison; "" if no key waits for it
	Seq    Name   // ToParked
	Stamp  Name
	Repeat bool
}

// Send publishes a control message.
type Send struct {
	Op      uint64
	To      Source
	Control Control
	Name    Name
	Head    string
}

// Return gives the last delivery of the group's queue back to its place. It is delivered again under another tag.
type Return struct{ Tag Tag }

// Write publishes a record to the log.
type Write struct {
	Op     uint64
	Record *Record
}

// StartPass consumes a parked queue when it has no other consumer. See "What the adapter must do".
type StartPass struct {
	Pair int
	Side Side
}

// EndPass cancels the consumer of the parked queue and keeps its channel open.
type EndPass struct {
	Pair int
	Side Side
}

// Renew asks for a new session, because the log has become long. The adapter stops this one in good order.
type Renew struct{}

// StepDown ends the session. The machine has no more effects. The adapter closes the connection and begins anew.
type StepDown struct{ Reason string }

// Report reports that the limit on keys was reached, or that there is room again.
type Report struct{ Full bool }

func (Deliver) effect()   {}
func (Ack) effect()       {}
func (Copy) effect()      {}
func (Send) effect()      {}
func (Write) effect()     {}
func (StartPass) effect() {}
func (EndPass) effect()   {}
func (Return) effect()    {}
func (Renew) effect()     {}
func (StepDown) effect()  {}
func (Report) effect()    {}
