package driver

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

var (
	// ErrClosed is returned by every method of a closed transport and of a closed bus. Messages whose publishing fails with it
	// were not published; if the error has a [PublishError], that is true of those that it names.
	ErrClosed = errors.New("the bus or its transport is closed")

	// ErrUnsupported is returned by a transport that lacks a capability.
	ErrUnsupported = errors.New("not supported by this transport")

	// ErrUnroutable matches the error of a publish whose messages reached no group. See [UnroutableError].
	ErrUnroutable = errors.New("no group wants the message")

	// ErrNotFound is returned by a [PoisonQueue] for a message that is not, or no longer, in it, and by a [GroupRemover] for a
	// group that does not exist.
	ErrNotFound = errors.New("not found")

	// ErrConsumed is returned by a [GroupRemover] for a group that has a live consumer.
	ErrConsumed = errors.New("the group has a live consumer; stop the processes that consume it, and wait until leat groups shows no consumer")
)

// UnroutableError is the error of messages that reached no group: publishing succeeded, but no handler will get them.
// errors.Is(err, ErrUnroutable) is true for it.
type UnroutableError struct {
	Topics []string // the topic of each such message
	Strict bool     // the transport was configured to treat this as a failure
}

func (e *UnroutableError) Error() string {
	return fmt.Sprintf("%v: %d published to %s; subscribe a group to it or correct the topic",
		ErrUnroutable, len(e.Topics), strings.Join(e.Topics[:min(len(e.Topics), 3)], ", "))
}

// Is matches [ErrUnroutable].
func (e *UnroutableError) Is(target error) bool { return target == ErrUnroutable }

// PublishError names the messages of a call that are not known to be safe. The others are safe.
type PublishError struct {
	Failed []*message.Message
	Err    error
}

// errClosedMeanwhile is the cause of [ClosedMeanwhile]. It does not match [ErrClosed].
var errClosedMeanwhile = errors.New("the transport was closed before it was known whether they are stored")

// ClosedMeanwhile returns the error of messages that were being published when the transport was closed, and that may be
// stored. It does not match [ErrClosed].
func ClosedMeanwhile(msgs []*message.Message) *PublishError {
	return &PublishError{Failed: msgs, Err: errClosedMeanwhile}
}

func (e *PublishError) Error() string {
	return fmt.Sprintf("%d messages are not known to be safe, the first is %s: %v", len(e.Failed), MessageID(e.Failed[0]), e.Err)
}

func (e *PublishError) Unwrap() error { return e.Err }
