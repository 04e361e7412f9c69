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

// OrderedByKey handles the messages of one partition key one after the other, in the order in which they were published.
// Messages of different keys are handled concurrently, and messages without a key in any order. A message that waits for its
// next try holds back its own key.
//
// By default a poisoned message holds back its key as well: the later messages of the key are parked until an operator replays
// or drops it. Parking loses no message, and is shown in the metrics, by "leat groups" and in the poison queue. If the later
// messages were handled instead, the handler's state could become wrong without notice. If each message is complete by itself,
// such as the current price of something, add [WithoutParking].
func OrderedByKey() Option { return func(h *bus.Handler) { h.Order = bus.OrderedByKey } }

// OrderedStrictly handles one message at a time, across all processes of the service, as if all messages had the same key. A
// poisoned message stops the group until an operator replays or drops it, as [OrderedByKey] documents; see [WithoutParking].
func OrderedStrictly() Option { return func(h *bus.Handler) { h.Order = bus.OrderedStrictly } }

// WithoutParking lets an ordered handler handle the later messages of a key after one was poisoned. Without this option, they
// wait until an operator replays or drops the poisoned one, and a strictly ordered handler stops.
func WithoutParking() Option { return func(h *bus.Handler) { h.NoParking = true } }

// Timeout sets the longest duration of one try. A negative value means no limit.
func Timeout(d time.Duration) Option { return func(h *bus.Handler) { h.Timeout = d } }

// Retry sets the handler's own retry policy.
func Retry(policy bus.RetryPolicy) Option { return func(h *bus.Handler) { h.Retry = &policy } }

// WithoutRetry poisons a message after its first failure.
func WithoutRetry() Option { return Retry(bus.OneTry()) }

// RetryOn sets the retry policy for errors that match target by errors.Is. Of several such options the first that matches an
// error applies. If none matches, the handler's policy applies.
func RetryOn(target error, policy bus.RetryPolicy) Option {
	return rule(is(target), &policy)
}

// RetryOnType sets the retry policy for errors that match the type E by errors.As; see [RetryOn].
func RetryOnType[E error](policy bus.RetryPolicy) Option {
	return rule(as[E], &policy)
}

// PermanentOn makes errors permanent that match one of the targets by errors.Is: their messages go to the poison queue without
// another try. Of several options the first match applies, as with [RetryOn].
func PermanentOn(targets ...error) Option { return rule(is(targets...), nil) }

// PermanentOnType makes errors permanent that match the type E by errors.As; see [PermanentOn].
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
