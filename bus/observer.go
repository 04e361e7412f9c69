package bus

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Outcome is how a delivery ended.
type Outcome string

// Outcomes. All but Redelivered and Interrupted are terminal: the group is done with the message.
const (
	Handled     Outcome = "handled"     // the handler succeeded
	Duplicate   Outcome = "duplicate"   // handled before; acked without its handler
	Poisoned    Outcome = "poisoned"    // in the poison queue, confirmed
	Discarded   Outcome = "discarded"   // failed, and the handler wanted it dropped
	Redelivered Outcome = "redelivered" // comes again
	Interrupted Outcome = "interrupted" // cut short by shutdown; comes again, at no cost
)

// Terminal reports whether the group is done with the message.
func (o Outcome) Terminal() bool { return o != Redelivered && o != Interrupted }

// Observer is told what happens to messages: metrics, logs, traces. Its methods are called
// concurrently, on the path of the message: they must be quick and must not block.
type Observer interface {
	// Published is called when the transport has answered a Publish.
	Published(ctx context.Context, p Publication)
	// Started is called before a delivery goes down the stack. What it returns becomes the
	// context of everything further in.
	Started(ctx context.Context, d *Delivery) context.Context
	// Finished is called once per delivery, with its final outcome.
	Finished(ctx context.Context, d *Delivery, o Observation)
}

// Publication is one call of the transport's Publish.
type Publication struct {
	Topic    string
	Messages []*message.Message
	Took     time.Duration
	Err      error // nil also where nobody wanted the message, unless that was asked to be an error
	Unrouted int   // how many reached no group
}

// Observation is the end of one delivery.
type Observation struct {
	Outcome Outcome
	Took    time.Duration // in the stack, retries in process included
	Err     error         // why it was not handled; nil for handled and duplicate
}
