package bus

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/ThreeDotsLabs/watermill/message"
)

var (
	// ErrClosed is what Publish, Handle and Run answer on a closed bus, and every method on a
	// closed transport.
	ErrClosed = errors.New("the bus or its transport is closed")

	// ErrInterrupted is the cancellation cause of a handler's context when the bus stops and the
	// drain timeout has passed. A delivery that ends with it is given back: it costs no attempt and
	// is never poisoned.
	ErrInterrupted = errors.New("interrupted by shutdown")

	// ErrUnsupported is what a transport answers where it lacks a capability.
	ErrUnsupported = errors.New("not supported by this transport")

	// ErrUnroutable says that a message reached no group. See [UnroutableError].
	ErrUnroutable = errors.New("no group wants the message")

	// ErrGoexit is how a delivery ends whose handler ended its goroutine. It counts as a failure.
	ErrGoexit = errors.New("handler ended its goroutine (runtime.Goexit, as testing.T.FailNow does)")

	// ErrNotFound is what a [PoisonQueue] answers for a message that is not, or no longer, in it.
	ErrNotFound = errors.New("not found")
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

// RetryAfter says how long to wait before the next try, in place of the retry policy's delay. The
// try counts like any other. RetryAfter(nil, d) is nil.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return &retryAfterError{err, d}
}

// RetryDelay is the delay that [RetryAfter] put on err or on an error it wraps.
func RetryDelay(err error) (d time.Duration, ok bool) {
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

// Snooze asks for the message again after d and costs no attempt: not now, but nothing failed.
func Snooze(d time.Duration) error {
	return &Redelivery{After: d, Cost: CostsNothing}
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

// Cost says whether a redelivery counts as an attempt.
type Cost int

// What a redelivery costs.
const (
	CostsAttempt Cost = iota
	CostsNothing
)

// Redelivery is the error with which a step of the stack gives a delivery back to the transport:
// the message comes again to this group after the delay, and no worker is held meanwhile.
type Redelivery struct {
	After time.Duration
	Cost  Cost
	Err   error // what failed; nil for a snooze
}

func (r *Redelivery) Error() string {
	if r.Err == nil {
		return fmt.Sprintf("redeliver in %s", r.After)
	}
	return fmt.Sprintf("redeliver in %s: %v", r.After, r.Err)
}

func (r *Redelivery) Unwrap() error { return r.Err }

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

// PanicError is a handler's panic as an error. Its text is one line; the stack stands apart,
// because error texts travel in headers, and headers have limits.
type PanicError struct {
	Value   any
	callers []uintptr
}

// maxStackFrames bounds what a PanicError keeps of its stack.
const maxStackFrames = 64

// NewPanicError keeps a recovered value with the stack of the panic. It must be called in the deferred
// function that recovered.
func NewPanicError(recovered any) *PanicError {
	callers := make([]uintptr, maxStackFrames)
	return &PanicError{Value: recovered, callers: callers[:runtime.Callers(2, callers)]}
}

// Stack is the stack of the panic, innermost call first, a line for the function and one for its place.
func (e *PanicError) Stack() string {
	var b strings.Builder
	frames := runtime.CallersFrames(e.callers)
	for more := len(e.callers) > 0; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		fmt.Fprintf(&b, "%s\n\t%s:%d\n", frame.Function, frame.File, frame.Line)
	}
	return b.String()
}

func (e *PanicError) Error() string { return OneLine(fmt.Sprintf("panic: %v", e.Value), maxErrorText) }

// Unwrap is the panic's value where that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// What bounds texts about errors that travel in headers, in bytes.
const (
	maxErrorText = 1024
	maxClassText = 256 // the name of a type
	maxChainText = 512
	maxLinkText  = 64 // the text of an error in a chain
)

// OneLine folds every run of white space and control characters to one space, repairs UTF-8 and
// cuts the text at limit bytes, so that it fits a header and a log line.
func OneLine(text string, limit int) string {
	cut := len(text) > 4*limit // fold no more than could be kept
	if cut {
		text = text[:4*limit]
	}
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "�"), func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(text) <= limit && !cut {
		return text
	}
	text = text[:min(len(text), limit-len("…"))]
	return strings.ToValidUTF8(text, "") + "…"
}

// AsRedelivery is the [Redelivery] in err's chain.
func AsRedelivery(err error) (*Redelivery, bool) {
	var r *Redelivery
	ok := errors.As(err, &r)
	return r, ok
}

// ErrorClass is what people group failures by: the Go type of the innermost error that is more than
// text, which leat's own wrappers and those of the packages errors and fmt are not. Where there is
// none, it is the innermost error's. A panic's class names its value's type.
func ErrorClass(err error) string {
	class, plain := "nil", true
	for err != nil {
		if p, ok := err.(*PanicError); ok { //nolint:errorlint // this link of the chain, not any
			return fmt.Sprintf("panic(%T)", p.Value)
		}
		if text := isText(err); plain || !text {
			class, plain = fmt.Sprintf("%T", err), text
		}
		next := errors.Unwrap(err)
		if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
			next = joined.Unwrap()[0]
		}
		err = next
	}
	return class
}

// ErrorChain names what errors.As and errors.Is find in err, outermost first and joined by " > ": the
// type of each error that is more than text, and the text, in quotes, of an error that is nothing else
// and wraps none, such as io.EOF. leat's own wrappers are left out. It is one line of at most 512
// bytes.
func ErrorChain(err error) string {
	var links []string
	for err != nil && len(links) < maxChainText/4 {
		next := errors.Unwrap(err)
		joined, _ := err.(interface{ Unwrap() []error })
		switch {
		case !isText(err):
			links = append(links, OneLine(fmt.Sprintf("%T", err), maxClassText))
		case isPanic(err):
			links = append(links, OneLine(ErrorClass(err), maxClassText))
		case next == nil && joined == nil:
			links = append(links, strconv.Quote(OneLine(err.Error(), maxLinkText)))
		}
		if joined != nil && len(joined.Unwrap()) > 0 {
			next = joined.Unwrap()[0]
		}
		err = next
	}
	return OneLine(strings.Join(links, " > "), maxChainText)
}

// isPanic reports whether err itself is a panic.
func isPanic(err error) bool {
	_, ok := err.(*PanicError) //nolint:errorlint // this link of the chain, not any
	return ok
}

// isText reports whether an error's type says nothing that its text does not.
func isText(err error) bool {
	t := reflect.TypeOf(err)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.PkgPath() {
	case "errors", "fmt", reflect.TypeFor[Redelivery]().PkgPath():
		return true
	default:
		return false
	}
}
