package handlers

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/leatbus/leat/bus"
)

// Option changes one handler.
type Option func(*bus.Handler)

func with(h bus.Handler, opts []Option) bus.Handler {
	for i, opt := range opts {
		if opt == nil {
			panic(fmt.Sprintf("handlers: handler %q: option %d of %d is nil", h.Name, i+1, len(opts)))
		}
		opt(&h)
	}
	return h
}

// Concurrency sets how many deliveries the group handles at once in this process. The default is 10.
func Concurrency(n int) Option { return func(h *bus.Handler) { h.Concurrency = n } }

// OrderedByKey handles the messages of one partition key one after the other, in the order in which they were
// published. Keys run beside each other, and messages without a key are not ordered. A message that waits for its
// next try holds back its own key.
//
// By default a poisoned message does so, too: the later messages of its key are parked until an operator replays or
// drops it. The handler has asked for order, so a message must not be handled as if the one before it had been. A key
// that waits loses nothing, and is seen in the metrics, by "leat groups" and in the poison queue; a state that was
// made without one of its messages may be wrong, and nobody sees it. If each message is complete by itself, such as
// the newest price, add [WithoutParking].
func OrderedByKey() Option { return func(h *bus.Handler) { h.Order = bus.OrderedByKey } }

// OrderedStrictly handles one message at a time, across all processes of the service: all messages are of one key. A
// poisoned message stops the group until an operator replays or drops it, for the reason that [OrderedByKey] gives;
// see [WithoutParking].
func OrderedStrictly() Option { return func(h *bus.Handler) { h.Order = bus.OrderedStrictly } }

// WithoutParking lets the later messages of a key go on when one was poisoned. Without this option, an ordered
// handler parks them: they wait until an operator replays or drops the poisoned one, and a strictly ordered
// handler stops altogether.
func WithoutParking() Option { return func(h *bus.Handler) { h.NoParking = true } }

// Timeout bounds one try; a negative value means that nothing does.
func Timeout(d time.Duration) Option { return func(h *bus.Handler) { h.Timeout = d } }

// Retry sets the handler's own retry policy.
func Retry(policy bus.RetryPolicy) Option { return func(h *bus.Handler) { h.Retry = &policy } }

// WithoutRetry makes the first failure of a message its last: it is poisoned then.
func WithoutRetry() Option { return Retry(bus.OneTry()) }

// RetryOn sets the retry policy of errors that errors.Is finds to be target. Of several such options the first
// that matches an error counts; an error that none matches has the handler's policy.
func RetryOn(target error, policy bus.RetryPolicy) Option {
	return rule(is(target), &policy)
}

// RetryOnType sets the retry policy of errors that errors.As finds to be an E, as RetryOn is that of a value.
func RetryOnType[E error](policy bus.RetryPolicy) Option {
	return rule(as[E], &policy)
}

// PermanentOn says that errors which errors.Is finds to be one of the targets are permanent: their
// messages go to the poison queue at once. It is one of the options of which the first match counts.
func PermanentOn(targets ...error) Option { return rule(is(targets...), nil) }

// PermanentOnType says so of errors that errors.As finds to be an E.
func PermanentOnType[E error]() Option { return rule(as[E], nil) }

func rule(match func(error) bool, policy *bus.RetryPolicy) Option {
	return func(h *bus.Handler) { h.RetryOn = append(h.RetryOn, bus.RetryRule{Match: match, Policy: policy}) }
}

func is(targets ...error) func(error) bool {
	return func(err error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
}

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// Breaker sets the handler's own circuit breaker; see [bus.BreakerPolicy] and [bus.NoBreaker].
func Breaker(policy bus.BreakerPolicy) Option {
	return func(h *bus.Handler) { h.Breaker = &policy }
}

// Dedup sets what to do when the dedup store can't be reached, or [bus.DedupOff].
func Dedup(mode bus.DedupMode) Option { return func(h *bus.Handler) { h.Dedup = mode } }

// Stack sets the handler's own stack, in place of the bus's.
func Stack(s bus.Stack) Option { return func(h *bus.Handler) { h.Stack = s } }
