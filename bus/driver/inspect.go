package driver

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// An Inspector is a [Transport] that shows its groups and messages to operators. It is optional; every durable transport of
// leat is one. No method takes a message from a group or changes one. All methods may be called concurrently, while groups
// consume, and in a process without groups.
type Inspector interface {
	// Groups returns all groups that exist in the message system, sorted by name. In a process that has subscribed to groups
	// it may return only those, if the transport can't list others without further access rights.
	Groups(ctx context.Context) ([]GroupInfo, error)
	// Topics returns the topics and patterns that groups have subscribed to, sorted by name.
	Topics(ctx context.Context) ([]TopicInfo, error)
	// Tail calls fn with a copy of every message that is published from now on to a topic that matches the pattern. It calls
	// fn for one message at a time. It blocks until ctx is done or fn returns an error, and returns that error. If fn is slower
	// than the publishers, copies may be dropped; groups never wait for fn.
	Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error
	// Diagnose checks what the transport needs, from the connection to the access rights on its tables or queues. A check that
	// could not be made is a finding, and does not end the others.
	Diagnose(ctx context.Context) []Finding
}

// Unknown is the value of a count that the message system does not know.
const Unknown = -1

// GroupInfo describes a group. Counts may be [Unknown].
type GroupInfo struct {
	Name       string
	Topics     []string  // topics and patterns, sorted
	Waiting    int       // messages that could be delivered now
	Delayed    int       // messages that wait for a time
	Parked     int       // messages that wait behind a poisoned one of their key
	ParkedKeys int       // keys with a poisoned message that holds them back; also 0 if it is unknown
	InFlight   int       // messages that are delivered and not settled
	Poisoned   int       // messages in the poison queue
	Consumers  int       // processes or connections that consume
	Oldest     time.Time // when the group got its oldest message; zero if it is unknown or there is none
	Paused     string    // who has paused it in the process that was asked: [PausedByOperator] or [PausedByBreaker]; transports leave it empty
}

// Values of [GroupInfo.Paused]. They are also the names of the parts of a group's health that report the pause.
const (
	PausedByOperator = "operator"
	PausedByBreaker  = "circuit breaker"
)

// TopicInfo has a topic or pattern and the groups that have subscribed to it, sorted.
type TopicInfo struct {
	Topic  string
	Groups []string
}

// Finding is the result of one check of [Inspector.Diagnose].
type Finding struct {
	Check string // what was checked, in a few words
	Err   error  // the problem, nil if there is none
	Text  string // the result, in one line
	Fix   string // how to fix Err
}

// DurationBucket counts deliveries that took at most Max, and longer than the Max of the bucket before it.
type DurationBucket struct {
	Max   time.Duration `json:"max_ns"` // at most an eighth longer than the deliveries took
	Count uint64        `json:"count"`
}
