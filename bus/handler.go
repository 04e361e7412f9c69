package bus

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// A Handler is a function that handles messages, with its durable name and settings. Package handlers makes handlers from
// plain functions; set the fields yourself only for another kind of function.
type Handler struct {
	// Name is durable: it names the consumer group, and with it queues and dedup keys. Renaming it
	// makes a new group and leaves the old one's messages behind.
	Name string
	// Topics are the topics and patterns that the group subscribes to.
	Topics []string
	// Types are the event types that the function takes; empty for a raw handler, which takes all.
	Types []Type
	// Bind returns the function that handles messages. It is called once per bus. Messages that the function returns are
	// published, each to the topic in its ce_type, before the delivery is acked.
	Bind func(Encoder) message.HandlerFunc
	// Check returns the error with which the function refuses a message of one of Types before it has any effect: it does not
	// decode, or is invalid. Operators' commands call it before they publish; it may be called concurrently. nil means that there
	// is no such check.
	Check func(Encoder, *message.Message) error

	Concurrency int            // deliveries handled at once; 0 means 10, 1 with OrderedStrictly
	Order       Order          // the order in which the group gets messages
	NoParking   bool           // later messages of a key do not wait behind a poisoned one; see [driver.Subscription]
	Timeout     time.Duration  // of one try; 0 means the stack's default, negative none
	Retry       *RetryPolicy   // nil means the stack's default
	RetryOn     []RetryRule    // policies for certain errors; the first that matches applies
	Breaker     *BreakerPolicy // nil means the bus's
	Dedup       DedupMode      // what to do when the dedup store can't be reached
	Stack       Stack          // in place of the bus's; nil means the bus's
	Undoable    bool           // all its effects but publishing are in a transaction that a [DryRun] rolls back
}

// defaultConcurrency is how many deliveries of a group are handled at once.
const defaultConcurrency = 10

// DedupMode is what the dedup step does when its store can't be reached.
type DedupMode string

// Dedup modes.
const (
	DedupDefault DedupMode = ""       // as the stack is configured: open, unless changed
	DedupOpen    DedupMode = "open"   // handle the message; a duplicate may be handled twice
	DedupClosed  DedupMode = "closed" // redeliver the message until the store can be reached
	DedupOff     DedupMode = "off"    // no dedup for this handler
)

// Stack wraps a handler's function in the steps of the consume path. Package middleware has the one that services use.
type Stack interface {
	// Wrap returns next wrapped in the steps. It is called once per handler, by [Bus.Handle]. It returns an error if the
	// steps are in a wrong order, or can't serve the handler.
	Wrap(h Handler, next message.HandlerFunc) (message.HandlerFunc, error)
}

func (h Handler) withDefaults() Handler {
	if h.Concurrency == 0 {
		h.Concurrency = defaultConcurrency
		if h.Order == OrderedStrictly {
			h.Concurrency = 1
		}
	}
	return h
}

// Validate returns an error if the handler is invalid.
func (h Handler) Validate() error {
	if err := h.validate(); err != nil {
		return fmt.Errorf("bus: handler %q: %w", h.Name, err)
	}
	return nil
}

func (h Handler) validate() error {
	if err := driver.ValidateName(h.Name, driver.MaxGroupBytes/2); err != nil {
		return err
	}
	if h.Bind == nil {
		return errors.New("it has no function")
	}
	for _, t := range h.Types {
		if err := t.Validate(); err != nil {
			return err
		}
	}
	if len(h.Topics) == 0 {
		return errors.New("it subscribes to no topic")
	}
	for _, topic := range h.Topics {
		if err := driver.ValidatePattern(topic); err != nil {
			return err
		}
	}
	if h.Concurrency < 0 {
		return fmt.Errorf("concurrency is %d; it is at least 1", h.Concurrency)
	}
	if h.Order == OrderedStrictly && h.Concurrency > 1 {
		return fmt.Errorf("concurrency is %d, but strict order handles one message at a time", h.Concurrency)
	}
	if h.Order < Unordered || h.Order > OrderedStrictly {
		return fmt.Errorf("order %d is unknown; it is one of Unordered, OrderedByKey, OrderedStrictly", h.Order)
	}
	switch h.Dedup {
	case DedupDefault, DedupOpen, DedupClosed, DedupOff:
	default:
		return fmt.Errorf("dedup mode %q is unknown; it is one of %s, %s, %s", h.Dedup, DedupOpen, DedupClosed, DedupOff)
	}
	if h.Breaker != nil {
		if err := h.Breaker.Validate(); err != nil {
			return err
		}
	}
	for _, rule := range h.RetryOn {
		if err := rule.Validate(); err != nil {
			return err
		}
	}
	if h.Retry != nil {
		return h.Retry.Validate()
	}
	return nil
}

// parks reports whether the messages of a key wait behind a poisoned one.
func (h Handler) parks() bool { return h.Order != Unordered && !h.NoParking }

// known returns the topics of the handler's types, older versions included, for transports that do not support patterns. It
// returns nil if the transport supports patterns, or if the handler has only patterns.
func (h Handler) known(c driver.Capabilities) []string {
	if c.Patterns {
		return nil
	}
	var topics []string
	done := make(map[string]int) // the highest version by name: two routes may take two versions of one event
	for _, t := range h.Types {
		for v := done[t.Name] + 1; v <= t.Version; v++ {
			topics = append(topics, Type{t.Name, v}.String())
			done[t.Name] = v
		}
	}
	if len(h.Types) > 0 {
		return topics
	}
	if slices.ContainsFunc(h.Topics, driver.IsPattern) {
		return nil
	}
	return h.Topics
}
