package driver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Transport is one message system. What it promises is written here and tested, for every transport
// alike, in transports/transporttest:
//
//  1. Every group gets every message it subscribed to; within a group one consumer handles it, across
//     goroutines, processes and machines.
//  2. Publish returns nil only when the message is safe on that transport, and honours its context.
//  3. An acked message does not come again. One that was nacked, or whose consumer failed, crashed or
//     lost its connection, does, with its attempt counted.
//  4. A delayed redelivery goes to its group only, and outlives a restart of the process and of the
//     message system where the transport is durable.
//  5. Payload bytes and headers come back exactly.
//  6. A group outlives its consumers: messages published meanwhile wait in it (durable transports).
//  7. Order holds as [Order] says, and past a poisoned message as [Subscription] says of Park.
//  8. Memory is bounded: a slow consumer slows the publishers of its own group, and never eats the heap. A
//     publisher that waits for one group takes no room in others, and delayed messages hold back only
//     those who publish with a delay.
//  9. The transport reconnects by itself; meanwhile publishers wait, within their context, and nothing
//     is handled empty or lost.
//  10. Close is final, may be called twice, and leaves no goroutine; after it every method answers
//     [ErrClosed].
//  11. Poisoned messages can be listed, shown, changed, added, replayed to their own group and dropped,
//     without disturbing others.
//  12. A misspelt option, a name that is too long, a conflict with what is there: each is a clear error
//     at start, with the fix in it.
//
// All methods may be called concurrently.
type Transport interface {
	// Publish returns nil when every message is safe: queued in memory, confirmed by the broker,
	// committed in the database. After another error none of them is known to be, unless a
	// [*PublishError] says which; publishing those again is the caller's choice. It blocks while the
	// transport is full or away, as long as ctx allows. A message that reaches no group is reported with an [*UnroutableError]; the others are safe.
	//
	// A message with the header [HeaderDeliverAt] is handed out no earlier. The transport may keep
	// the messages: the caller must not change them afterwards.
	Publish(ctx context.Context, topic string, msgs ...*message.Message) error

	// Subscribe makes sure that the group exists and that messages of its topics wait in it from
	// now on. ctx bounds this call only, not the receiver. Nothing is handed out before its first
	// Next, so a bus subscribes all its groups before the first of them consumes.
	// Subscribing a group twice adds competing consumers.
	// A durable transport keeps topics that the group has asked for before, so that a rolling deploy
	// loses nothing; to end that is an operator's act.
	Subscribe(ctx context.Context, s Subscription) (Receiver, error)

	// PoisonQueue is the poison queue of a group, whether or not the group is subscribed here.
	PoisonQueue(group string) PoisonQueue

	// Capabilities is what the transport can do. It does not change.
	Capabilities() Capabilities

	// Close gives back what was handed out and not settled, and releases everything. It waits for
	// that as long as ctx allows. Receivers are closed with it.
	Close(ctx context.Context) error
}

// Receiver hands out the messages of one subscription.
type Receiver interface {
	// Next blocks until a message is there. Up to Subscription.Concurrency calls run at once, and
	// each delivery must be settled once by the methods of [Delivery]. Next returns ctx's error when
	// ctx is done and nothing was taken out, and ErrClosed after Close. While the message system is
	// away it blocks; any other error is final, and the bus stops with it.
	Next(ctx context.Context) (*Delivery, error)

	// Close stops the receiver and gives back what it holds and has not handed out. Deliveries that are
	// still out may be settled until the transport is closed.
	Close(ctx context.Context) error
}

// Subscription is what a group asks of a transport.
type Subscription struct {
	// Group is the durable name: <service>.<handler name>.
	Group string
	// Topics are the topics and patterns (order.*, order.>) whose messages the group gets.
	Topics []string
	// Known are the topics to subscribe to where the transport has no patterns.
	Known []string
	// Concurrency is how many deliveries may be out at once. At least 1.
	Concurrency int
	// Delays are the delays of the retry policy that are redeliveries, sorted: a hint for transports that prepare a queue
	// for each.
	Delays []time.Duration
	// Order is the order that the group asks for.
	Order Order
	// Park keeps the order past a poisoned message too. When a message is poisoned, the later ones
	// of its key are parked: they wait in the group, in order and for as long as it takes, across
	// restarts where the transport is durable, while other keys run at full speed. What is replayed
	// is handed out first, in its old order, then what was parked behind it, then what was published
	// since. A message that is dropped, or whose retention ends, releases its key as well. A key goes
	// on as far as its next poisoned message; messages that were poisoned while the group did not
	// park hold nothing back.
	//
	// In a strictly ordered group all messages are of one key: the whole group stops. Messages
	// without a key are never parked. A group that parks must be ordered.
	//
	// Consumers of one group should agree. The last to subscribe decides what is to become of what
	// is parked; while others do not agree with it, messages may pass a poisoned one.
	Park bool
}

// Order says in which order a group gets its messages.
type Order int

const (
	// Unordered hands messages out in the order of their arrival, to whoever is free. With
	// Concurrency 1 and a single consumer that is the order in which they are handled, as long as
	// none is redelivered.
	Unordered Order = iota
	// OrderedByKey hands out one message of a partition key at a time, in the order of arrival. A
	// message that waits for its redelivery holds back its own key and no other. A message that was
	// poisoned does so too where [Subscription.Park] asks for it. Messages without a key are unordered.
	OrderedByKey
	// OrderedStrictly hands out one message of the group at a time, across all processes.
	OrderedStrictly
)

func (o Order) String() string {
	names := [...]string{"unordered", "ordered by key", "ordered strictly"}
	if o < 0 || int(o) >= len(names) {
		return fmt.Sprintf("order %d", int(o))
	}
	return names[o]
}

// Capabilities is what a transport can do. A subscription that asks for more fails at start, with a
// clear error; nothing degrades silently.
type Capabilities struct {
	Durable  bool // messages outlive the process
	Delay    bool // redelivery and publishing with a delay hold no worker
	Patterns bool // subscriptions by pattern
	ByKey    bool // OrderedByKey
	Strict   bool // OrderedStrictly
	Poison   bool // poison queues can be listed, replayed and dropped
	Park     bool // messages wait behind a poisoned one of their key
}

// Check says what a subscription asks for that the transport can't do.
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

// ErrParkUnordered is the error of a group that asks to park and is not ordered.
var ErrParkUnordered = errors.New("it parks messages behind poisoned ones, and is not ordered; ask for an order, or let them pass with WithoutParking")

// MaxGroupBytes is the longest group name. It leaves a transport room for a suffix.
const MaxGroupBytes = 200

// Validate says whether the subscription can be made on any transport.
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
