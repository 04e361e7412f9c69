package bus

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

var (
	// ErrClosed is returned by every method of a closed bus and of a closed transport.
	ErrClosed = driver.ErrClosed

	// ErrNotFound is returned by a poison queue for a message that is not, or no longer, in it.
	ErrNotFound = driver.ErrNotFound

	// ErrUnroutable is matched by the error of a publish whose messages reached no group. See [UnroutableError].
	ErrUnroutable = driver.ErrUnroutable

	// ErrUnsupported is returned by a transport that lacks a capability.
	ErrUnsupported = driver.ErrUnsupported

	// ErrInterrupted is the cancellation cause of a handler's context when the bus stops and the
	// drain timeout has passed. A delivery that ends with it is given back: it costs no attempt and
	// is never poisoned.
	ErrInterrupted = errors.New("interrupted by shutdown")

	// ErrGoexit is how a delivery ends whose handler ended its goroutine. It counts as a failure, and like a panic
	// as a bug, not as an outage.
	ErrGoexit = errors.New("handler ended its goroutine (runtime.Goexit, as testing.T.FailNow does)")

	// ErrNoOutbox is what [InTx] answers on a bus that has no outbox and whose transport does not
	// publish in transactions.
	ErrNoOutbox = errors.New("no outbox: give bus.Config an Outbox over the transaction's database, such as sql.NewOutbox " +
		"(with fxmodule, LEAT_OUTBOX_URL), or use that database as the transport")
)

// Permanent marks an error that no further try will mend. The message goes to the poison queue at
// once. Permanent(nil) is nil.
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

// RetryAfter says how long to wait at least before the next try, as the HTTP header Retry-After does (RFC 9110,
// section 10.2.3). A longer delay of the retry policy stands. The try counts like any other. RetryAfter(nil, d) is nil.
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

// Snooze asks for the message again after d, at least 100 ms, and costs no attempt: not now, but nothing failed.
func Snooze(d time.Duration) error {
	return &Redelivery{After: d, Uncounted: true}
}

// Discard acks the message although the handler failed. It is counted as discarded, and nothing
// keeps a copy. Discard(nil) is nil.
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

// Redelivery is the error with which a step of the stack gives a delivery back to the transport:
// the message comes again to this group after the delay, and no worker is held meanwhile.
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

// NewerVersionError says that a message has a higher version of an event than its handler takes. The version step of
// the stack gives such a message back until a newer version of the service takes it.
type NewerVersionError struct {
	Have  Type
	Takes []Type
}

func (e *NewerVersionError) Error() string {
	return fmt.Sprintf("%s is newer than what the handler takes: %s (deploy the version of the service that takes it)", e.Have, typeNames(e.Takes))
}

// OtherEventError says that a message has another event than its handler takes, and only its topic matches the
// handler's pattern. It is discarded, and logged once for each type.
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
