package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A Transport connects the bus to one message system. Every transport keeps these promises, which the test suite
// transports/transporttest tests:
//
//  1. Every group gets every message that it has subscribed to. Within a group one consumer handles it, across goroutines,
//     processes and machines.
//  2. Publish returns nil only when the message is safe on the transport. It returns early when its context is done.
//  3. An acked message is not redelivered. A message that was nacked, or whose consumer failed, crashed or lost its connection,
//     is redelivered, and the attempt counts.
//  4. A delayed redelivery goes to its group only. On a durable transport it survives a restart of the process and of the
//     message system.
//  5. Payload and headers are delivered exactly as published.
//  6. On a durable transport, a group outlives its consumers: messages wait in it while there is no consumer.
//  7. Messages are delivered in the order that [Order] documents, also behind a poisoned message if [Subscription].Park is set.
//  8. Memory is bounded: a slow consumer slows down the publishers to its own group. A publisher that waits for one group takes
//     no capacity of other groups, and delayed messages slow down only publishers of delayed messages.
//  9. The transport reconnects by itself. Meanwhile publishers wait as long as their contexts allow, and no message is lost or
//     delivered empty.
//  10. Close is final, may be called twice, and leaves no goroutine. After it every method returns [ErrClosed].
//  11. Poisoned messages can be listed, shown, changed, added, replayed to their own group and dropped, without an effect on
//     other messages.
//  12. A misspelt option, a name that is too long and a conflict with existing objects each cause a clear error at start that
//     names the fix.
//
// All methods may be called concurrently.
type Transport interface {
	// Publish publishes messages to a topic. It returns nil when every message is safe: queued in memory, confirmed by the
	// broker, or committed in the database. It blocks while the transport is full or disconnected, until ctx is done.
	//
	// If the error has a [*PublishError], that one names the messages that are not known to be safe. An [*UnroutableError]
	// names messages that reached no group; all messages are safe. After any other error none of them is known to be safe.
	// The transport does not publish a message again after an error; the caller may.
	//
	// A message with the header [HeaderDeliverAt] is not delivered before that time. The transport may keep the messages: the
	// caller must not change them afterwards.
	Publish(ctx context.Context, topic string, msgs ...*message.Message) error

	// Subscribe creates the group if it does not exist; from now on messages of its topics wait in it. ctx bounds this call
	// only, not the receiver. Nothing is delivered before the first call of Next, so a bus can subscribe all its groups before
	// the first of them consumes. Subscribing a group several times adds competing consumers.
	//
	// On a durable transport the group also keeps the topics of earlier subscriptions, so that a rolling deploy loses nothing;
	// only an operator removes them.
	Subscribe(ctx context.Context, s Subscription) (Receiver, error)

	// PoisonQueue returns the poison queue of a group. The group need not be subscribed in this process. It does not block.
	PoisonQueue(group string) PoisonQueue

	// Capabilities returns the features that the transport supports. They do not change.
	Capabilities() Capabilities

	// Close gives back all deliveries that are not settled, closes all receivers and releases all resources. It blocks until
	// that is done, as long as ctx allows.
	Close(ctx context.Context) error
}

// A Receiver receives the messages of one subscription.
type Receiver interface {
	// Next blocks until there is a message, also while the message system is disconnected. Up to Subscription.Concurrency
	// calls run at once, and each delivery must be settled once by its [Settler]. Next returns ctx's error if ctx is done, and
	// then no message was taken. It returns ErrClosed after Close. Any other error is final, and stops the bus.
	Next(ctx context.Context) (*Delivery, error)

	// Close stops the receiver and gives back messages that it has fetched but not delivered. Deliveries that are not settled
	// may still be settled until the transport is closed.
	Close(ctx context.Context) error
}

// Subscription describes a group to a transport.
type Subscription struct {
	// Group is the durable name: <service>.<handler name>.
	Group string
	// Topics are the topics and patterns (order.*, order.>) whose messages the group gets.
	Topics []string
	// Program is the path of the consumer's main package, for [ConsumerLister]; empty if it is unknown.
	Program string
	// Known are the topics to subscribe to if the transport does not support patterns.
	Known []string
	// Concurrency is how many deliveries may be unsettled at once, at least 1.
	Concurrency int
	// Delays are the delays of redeliveries by the retry policy, sorted. They are a hint for transports that prepare a queue
	// for each delay.
	Delays []time.Duration
	// Order is the order in which the group gets messages.
	Order Order
	// Park keeps the order behind a poisoned message. When a message is poisoned, the later messages of its key are parked:
	// they wait in the group, in order and without a time limit, while other keys are not affected. On a durable transport
	// they survive restarts. (Most brokers call a dead-letter queue a "parking lot". In leat, the dead-letter queue is the
	// poison queue, and parked messages are those that wait behind a poisoned one.)
	//
	// A poisoned message releases its key when it is replayed, when it is dropped, or when its retention ends. Replayed
	// messages are delivered first, in their old order, then the messages that were parked behind them, then newer ones. The
	// key is released up to its next poisoned message. Messages that were poisoned while the group did not park hold
	// nothing back.
	//
	// In a strictly ordered group all messages have the same key: the whole group stops. Messages without a key are never
	// parked. A group that parks must be ordered.
	//
	// All consumers of a group should have the same value. If they differ, the last one to subscribe decides, and until the
	// others are gone, messages may overtake a poisoned one.
	Park bool
}

// Order is the order in which a group gets its messages.
type Order int

const (
	// Unordered delivers messages in the order of their arrival, to any free consumer. With Concurrency 1 and a single
	// consumer they are handled in that order, unless one is redelivered.
	Unordered Order = iota
	// OrderedByKey delivers one message of a partition key at a time, in the order of arrival. A message that waits for its
	// redelivery holds back its own key only, and so does a poisoned message if [Subscription].Park is set. Messages without
	// a key are unordered.
	OrderedByKey
	// OrderedStrictly delivers one message of the group at a time, across all processes.
	OrderedStrictly
)

func (o Order) String() string {
	names := [...]string{"unordered", "ordered by key", "ordered strictly"}
	if o < 0 || int(o) >= len(names) {
		return fmt.Sprintf("order %d", int(o))
	}
	return names[o]
}

// Capabilities lists the features that a transport supports. A subscription that needs another one fails at start.
type Capabilities struct {
	Durable  bool // messages outlive the process
	Delay    bool // publishing and redelivery with a delay, without a waiting worker
	Patterns bool // subscriptions by pattern
	ByKey    bool // OrderedByKey
	Strict   bool // OrderedStrictly
	Poison   bool // poison queues can be listed, replayed and dropped
	Park     bool // messages wait behind a poisoned one of their key
}

// Check returns an error that wraps [ErrUnsupported] if a subscription needs a feature that the transport does not support.
func (c Capabilities) Check(s Subscription) error {
	var missing []string
	if s.Order == OrderedByKey && !c.ByKey {
		missing = append(missing, "ordering by key (set concurrency to 1, or drop the ordering)")
	}
	if s.Order == OrderedStrictly && !c.Strict {
		missing = append(missing, "strict ordering (set concurrency to 1 and run one instance)")
	}
	if s.Park && !c.Park {
		missing = append(missing, "parking behind poisoned messages (the option WithoutParking lets them pass)")
	}
	if !c.Patterns && len(s.Known) == 0 {
		missing = append(missing, "subscribing by pattern (name the topics one by one)")
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("group %q asks for %s: %w", s.Group, strings.Join(missing, " and "), ErrUnsupported)
}

// ErrParkUnordered is the error of a group that parks and is not ordered.
var ErrParkUnordered = errors.New("it parks messages behind poisoned ones, and is not ordered; ask for an order, or let them pass with WithoutParking")

// MaxGroupBytes is the longest group name. It leaves a transport room for a suffix.
const MaxGroupBytes = 200

// Validate returns an error if the subscription is invalid on every transport.
func (s Subscription) Validate() error {
	if err := ValidateName(s.Group, MaxGroupBytes); err != nil {
		return fmt.Errorf("group %q: %w", s.Group, err)
	}
	if len(s.Topics) == 0 {
		return fmt.Errorf("group %q subscribes to no topic", s.Group)
	}
	for _, topic := range s.Topics {
		if err := ValidatePattern(topic); err != nil {
			return fmt.Errorf("group %q: %w", s.Group, err)
		}
	}
	if s.Concurrency < 1 {
		return fmt.Errorf("group %q: concurrency is %d; it is at least 1", s.Group, s.Concurrency)
	}
	if s.Park && s.Order == Unordered {
		return fmt.Errorf("group %q: %w", s.Group, ErrParkUnordered)
	}
	return nil
}

// CheckAgrees returns an error if other consumers of the group in the process have other topics, which are compared in their order,
// or another order.
func (s Subscription) CheckAgrees(topics []string, order Order) error {
	if order == s.Order && slices.Equal(topics, s.Topics) {
		return nil
	}
	return fmt.Errorf("group %q is subscribed to %v (%s) already, and now to %v (%s); consumers of one group must agree, "+
		"so give one of them another name", s.Group, topics, order, s.Topics, s.Order)
}

// ValidateName returns an error if name can't become a part of queue and table names, or has more than limit bytes.
func ValidateName(name string, limit int) error {
	switch {
	case name == "":
		return errors.New("name is empty")
	case len(name) > limit:
		return fmt.Errorf("name has %d bytes; at most %d fit", len(name), limit)
	}
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("._-", r)) {
			return fmt.Errorf("name has %q; use letters, digits and, not in first place, . _ -", r)
		}
	}
	return nil
}
