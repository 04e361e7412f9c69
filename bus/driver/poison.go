package driver

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
)

// PoisonedMessage is a message in a poison queue.
type PoisonedMessage struct {
	ID      string // identifies the message in its queue; not the event's id
	Message *message.Message
	Fault   Fault
	Parked  int // messages that wait behind it; [Unknown] if the transport does not know
}

// Topic returns the topic that the message was published to: that of its fault, else its ce_type.
func (p PoisonedMessage) Topic() string {
	if topic := p.Message.Metadata[HeaderFaultTopic]; topic != "" {
		return topic
	}
	return TopicOf(p.Message)
}

// A PoisonQueue has the messages of one group that have failed permanently: it is a Dead Letter Channel. Its methods block until
// the message system answers or ctx is done. They may be called concurrently, while the group consumes, and on a durable
// transport by other processes. They return [ErrUnsupported] if the transport does not support poison queues.
//
// In a group that parks ([Subscription.Park]), a poisoned message holds back the later ones of its key until it is replayed or
// dropped. So a key that fails has one poisoned message, and the messages that depend on it wait.
type PoisonQueue interface {
	// List returns up to limit messages in the order of their arrival, beginning behind the message with the id after; ""
	// begins at the front. An empty result means that there are no more.
	List(ctx context.Context, after string, limit int) ([]PoisonedMessage, error)
	// Get returns one message, or [ErrNotFound].
	Get(ctx context.Context, id string) (PoisonedMessage, error)
	// Replay moves messages back to their own group, as they were before their first delivery, and returns how many it moved.
	// It deletes a message from the poison queue after it is safe in the group. If an id is not there, Replay moves the others
	// and returns [ErrNotFound]. If the process is killed during a replay, no message is lost, but some may be in both places;
	// replay the rest again, and dedup detects the duplicates. One call with many ids is faster than many calls. [WithProgress]
	// shows how far it is.
	//
	// In a group that parks, a replayed message is delivered before the messages that wait behind it.
	Replay(ctx context.Context, ids ...string) (int, error)
	// Drop deletes messages permanently and returns how many it deleted. Messages that are parked behind one are released. It
	// returns [ErrNotFound] as Replay does.
	Drop(ctx context.Context, ids ...string) (int, error)
	// Put writes messages with the fault in their headers, and returns when they are safe in the poison queue. A message with
	// an ID replaces the message with this ID; one without is appended, and in a group that parks it holds back messages that
	// are published later with its key. If an ID is not there, Put writes the others and returns [ErrNotFound].
	Put(ctx context.Context, msgs ...PoisonedMessage) error
	// Len returns the number of messages in the queue.
	Len(ctx context.Context) (int, error)
}

type progressKey struct{}

// WithProgress returns a context with which [PoisonQueue.Replay] and [PoisonQueue.Drop] call moved with the number of messages that
// they have just moved, each time they have moved some of many. The calls are made by the caller's goroutine.
func WithProgress(ctx context.Context, moved func(n int)) context.Context {
	return context.WithValue(ctx, progressKey{}, moved)
}

// Progress calls the function of [WithProgress], if ctx has one. Transports call it.
func Progress(ctx context.Context, n int) {
	if moved, ok := ctx.Value(progressKey{}).(func(n int)); ok {
		moved(n)
	}
}

// A PoisonWalker is a [PoisonQueue] that iterates over all its messages. It is for transports in which each call of
// [PoisonQueue.List] reads the queue from the beginning.
type PoisonWalker interface {
	// Walk calls fn with each message, one at a time, in the order of the queue, which is roughly that of their arrival. It
	// blocks until fn has seen all messages, fn returns an error or ctx is done, and returns that error. Walk has a bounded
	// part of the queue in memory. It does not block other users of the queue while fn runs, and fn may call the queue's
	// methods. Messages that are added or moved during the walk may be missing.
	Walk(ctx context.Context, fn func(PoisonedMessage) error) error
}
