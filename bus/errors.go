package bus

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

var (
	// ErrClosed is returned by every method of a closed bus and of a closed transport. Messages whose publishing fails with it
	// were not published; if the error has a [*PublishError], that is true of those that it names.
	ErrClosed = driver.ErrClosed

	// ErrNotFound is returned by a poison queue for a message that is not, or no longer, in it.
	ErrNotFound = driver.ErrNotFound

	// ErrUnroutable matches the error of a publish whose messages reached no group. See [UnroutableError].
	ErrUnroutable = driver.ErrUnroutable

	// ErrUnsupported is returned by a transport that lacks a capability.
	ErrUnsupported = driver.ErrUnsupported

	// ErrInvalid matches the error of a publish whose event's Validate method has returned an error, which it wraps, too.
	ErrInvalid = errors.New("invalid event")

	// ErrInterrupted is the cause of the cancellation of a handler's context when the bus stops and the drain timeout has
	// passed. A delivery that ends with it is given back: it does not count as an attempt, and is never poisoned.
	ErrInterrupted = errors.New("interrupted by shutdown")

	// ErrGoexit is the error of a delivery whose handler ended its goroutine. It counts as a failure. For the circuit breaker
	// it is a bug, like a panic, and no outage.
	ErrGoexit = errors.New("handler ended its goroutine (runtime.Goexit, as testing.T.FailNow does)")

	// ErrNoOutbox is returned by [InTx] if the bus has no outbox and its transport does not publish in transactions.
	ErrNoOutbox = errors.New("no outbox: give bus.Config an Outbox over the transaction's database, such as outbox.New " +
		"(with fxmodule, LEAT_OUTBOX_URL), or use that database as the transport")
)

// Permanent wraps an error that another try can't fix. The message goes to the poison queue without another try.
// Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

// IsPermanent reports whether err, or an error it wraps, was marked by [Permanent].
func IsPermanent(err error) bool {
	var p *permanentError
	return errors.As(err, &p)
}

type permanentError struct{ error }

func (e *permanentError) Unwrap() error { return e.error }

// RetryAfter wraps an error so that the next try comes after d at the earliest, as the HTTP header Retry-After asks (RFC
// 9110, section 10.2.3). If the retry policy has a longer delay, that one applies. The failure counts like any other.
// RetryAfter(nil, d) is nil.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, d}
}

// retryDelay returns the delay that [RetryAfter] put on err or on an error it wraps.
func retryDelay(err error) (d time.Duration, ok bool) {
	var r *retryAfterError
	if !errors.As(err, &r) {
		return 0, false
	}
	return r.after, true
}

type retryAfterError struct {
	error
	after time.Duration
}

func (e *retryAfterError) Unwrap() error { return e.error }

// Snooze returns an error with which a handler asks for the same message after d, at least 100 ms. It is no failure, and
// does not count as an attempt.
func Snooze(d time.Duration) error {
	return &Redelivery{After: d, Uncounted: true}
}

// Discard wraps an error so that the message is acked although the handler failed. It counts as discarded, and no copy is
// kept. Discard(nil) is nil.
func Discard(err error) error {
	if err == nil {
		return nil
	}
	return &discardError{err}
}

// IsDiscard reports whether err, or an error it wraps, was marked by [Discard].
func IsDiscard(err error) bool {
	var d *discardError
	return errors.As(err, &d)
}

type discardError struct{ error }

func (e *discardError) Unwrap() error { return e.error }

// Redelivery is the error with which a step of the stack gives a delivery back to the transport. The message is redelivered to
// this group after the delay. No worker waits for it.
type Redelivery struct {
	After     time.Duration
	Uncounted bool  // the redelivery does not count as an attempt
	Err       error // what failed; nil for a snooze
}

func (r *Redelivery) Error() string {
	if r.Err == nil {
		return fmt.Sprintf("redeliver in %s", r.After)
	}
	return fmt.Sprintf("redeliver in %s: %v", r.After, r.Err)
}

func (r *Redelivery) Unwrap() error { return r.Err }

// NewerVersionError is the error of a message that has a higher version of an event than its handler takes. The version step
// of the stack gives such a message back until a newer version of the service takes it.
type NewerVersionError struct {
	Have  Type
	Takes []Type
}

func (e *NewerVersionError) Error() string {
	return fmt.Sprintf("%s is newer than what the handler takes: %s (deploy the version of the service that takes it)", e.Have, typeNames(e.Takes))
}

// OtherEventError is the error of a message that has another event than its handler takes, although its topic matches the
// handler's pattern. The message is discarded, and logged once for each type.
type OtherEventError struct {
	Have  Type
	Takes []Type
}

func (e *OtherEventError) Error() string {
	return fmt.Sprintf("%s is another event than the handler takes: %s", e.Have, typeNames(e.Takes))
}

func typeNames(types []Type) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = t.String()
	}
	return strings.Join(names, ", ")
}
