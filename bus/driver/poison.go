package driver

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// PoisonedMessage is a message in a poison queue.
type PoisonedMessage struct {
	ID      string // its place in the queue; not the event's id
	Message *message.Message
	Fault   Fault
	Parked  int // messages that wait behind it; [Unknown] where the transport can't tell
}

// Topic returns where the message was published: by its fault, else by its own account.
func (p PoisonedMessage) Topic() string {
	if topic := p.Message.Metadata[HeaderFaultTopic]; topic != "" {
		return topic
	}
	return TopicOf(p.Message)
}

// PoisonQueue is where the messages of one group go that will not succeed: a Dead Letter Channel.
// Its methods may be called concurrently, while the group consumes, and by other processes where
// the transport is durable. A transport without the capability answers [ErrUnsupported].
//
// In a group that parks ([Subscription.Park]), a poisoned message holds back the later ones of its key
// until it is replayed or dropped. So there is one poisoned message for a key that fails, and not all
// that depended on it.
type PoisonQueue interface {
	// List returns up to limit messages in the order of their arrival, those behind the message
	// with the id after; "" starts at the front. An empty result is the end.
	List(ctx context.Context, after string, limit int) ([]PoisonedMessage, error)
	// Get returns one message, or [ErrNotFound].
	Get(ctx context.Context, id string) (PoisonedMessage, error)
	// Replay hands messages to their own group again, as they were before their first delivery,
	// and takes them out of the poison queue once they are safe there. It returns how many it
	// moved; [ErrNotFound] for an id that is not there does not keep it from moving the others. A
	// process that is killed meanwhile loses none, and may leave some in both places: a replay of
	// what is left ends it, and dedup knows those that came twice. Many ids at once are quicker
	// than one by one.
	// In a group that parks, a replayed message comes before everything that waits behind it.
	Replay(ctx context.Context, ids ...string) (int, error)
	// Drop deletes messages for good and returns how many. What is parked behind one goes on
	// without it.
	Drop(ctx context.Context, ids ...string) (int, error)
	// Put writes messages as they are, with the fault that their headers tell of, and returns when
	// they are safe in the poison queue. One with the ID of a message that is there takes its place;
	// one without an ID goes behind the others, and in a group that parks it holds back what is
	// published later with its key. [ErrNotFound] for an ID that is not there does not
	// keep it from writing the others.
	Put(ctx context.Context, msgs ...PoisonedMessage) error
	// Len is how many messages the queue holds.
	Len(ctx context.Context) (int, error)
}

// PoisonWalker is a [PoisonQueue] that shows all its messages in one walk. It is for transports in which each
// [PoisonQueue.List] reads the queue anew.
type PoisonWalker interface {
	// Walk calls fn with each message, one at a time, in the order in which the queue has them: about that of their
	// arrival. It returns the error of fn, which ends the walk. What is poisoned meanwhile may be missing. Walk keeps
	// a bounded part of the queue in memory. It doesn't keep the queue from others while fn takes its time, and fn
	// may call the queue's methods; messages that are moved meanwhile may be shown or not.
	Walk(ctx context.Context, fn func(PoisonedMessage) error) error
}
