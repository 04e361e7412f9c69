package driver

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

var (
	// ErrClosed is returned by every method of a closed transport and of a closed bus.
	ErrClosed = errors.New("the bus or its transport is closed")

	// ErrUnsupported is returned by a transport that lacks a capability.
	ErrUnsupported = errors.New("not supported by this transport")

	// ErrUnroutable is matched by the error of a publish whose messages reached no group. See [UnroutableError].
	ErrUnroutable = errors.New("no group wants the message")

	// ErrNotFound is returned by a [PoisonQueue] for a message that is not, or no longer, in it.
	ErrNotFound = errors.New("not found")
)

// UnroutableError says that messages reached no group: Publish was safe, but nobody will ever see
// them. errors.Is(err, ErrUnroutable) is true for it.
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

// PublishError says which messages of a call are not known to be safe. The others are.
type PublishError struct {
	Failed []*message.Message
	Err    error
}

func (e *PublishError) Error() string {
	return fmt.Sprintf("%d messages are not known to be safe, the first is %s: %v", len(e.Failed), MessageID(e.Failed[0]), e.Err)
}

func (e *PublishError) Unwrap() error { return e.Err }
