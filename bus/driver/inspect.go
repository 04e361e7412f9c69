package driver

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Inspector is what a [Transport] shows to operators. It is a transport's choice to be one; every
// durable transport of leat is. Nothing here takes a message from a group or changes one. All methods
// may be called concurrently, while groups consume, and from a process that has no group.
type Inspector interface {
	// Groups returns all groups that the message system knows, by name. In a process that has subscribed to groups it may
	// return those alone, if others can only be had from something that services do not ask.
	Groups(ctx context.Context) ([]GroupInfo, error)
	// Topics are the topics and patterns that some group asks for, by name.
	Topics(ctx context.Context) ([]TopicInfo, error)
	// Tail calls fn with a copy of every message that is published to a topic of the pattern from
	// now on, one at a time, until ctx is done or fn returns an error, which it returns. A copy may
	// be missing where fn is slower than the publishers; groups never wait for it.
	Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error
	// Diagnose checks what the transport needs, from reaching the service to the rights on its
	// tables or queues. It goes on as far as it can: a check that could not be made is a finding.
	Diagnose(ctx context.Context) []Finding
}

// Unknown is a count that the message system can't tell.
const Unknown = -1

// GroupInfo is a group as the message system knows it. Counts may be [Unknown].
type GroupInfo struct {
	Name       string
	Topics     []string  // topics and patterns, sorted
	Waiting    int       // messages that could be handed out now
	Delayed    int       // messages that wait for a time
	Parked     int       // messages that wait behind a poisoned one of their key
	ParkedKeys int       // keys that a poisoned message holds back; 0 also where the message system can't tell
	InFlight   int       // messages that are handed out and not settled
	Poisoned   int       // messages in the poison queue
	Consumers  int       // processes or connections that consume
	Oldest     time.Time // when the oldest message in the group was first seen; zero where that is unknown or there is none
}

// TopicInfo is a topic or pattern and the groups that ask for it, sorted.
type TopicInfo struct {
	Topic  string
	Groups []string
}

// Finding is what one check of [Inspector.Diagnose] found.
type Finding struct {
	Check string // what was checked, a few words
	Err   error  // what is wrong, nil where nothing is
	Text  string // what was found, a line
	Fix   string // what to do about Err
}
