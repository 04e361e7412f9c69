package driver

import (
	"errors"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// The headers of a poisoned message. They are added to the message's own headers, and a replay deletes them.
const (
	HeaderFaultError    = "leat_fault_error"     // one line, at most 1 KiB
	HeaderFaultClass    = "leat_fault_class"     // see [ErrorClass]
	HeaderFaultChain    = "leat_fault_chain"     // all errors of the chain, see [ErrorChain]
	HeaderFaultTrace    = "leat_fault_trace_id"  // of the message's traceparent
	HeaderFaultAttempts = "leat_fault_attempts"  // deliveries, this one included
	HeaderFaultTries    = "leat_fault_tries"     // calls of the handler over all deliveries
	HeaderFaultFirstAt  = "leat_fault_first_at"  // RFC 3339, when the group got the message
	HeaderFaultFailedAt = "leat_fault_failed_at" // RFC 3339, when the handler first failed
	HeaderFaultFailures = "leat_fault_failures"  // failed tries that count; on a redelivered message
	HeaderFaultWaiting  = "leat_fault_waiting"   // RFC 3339, since when it waits for a newer version of the service
	HeaderFaultDue      = "leat_fault_due"       // RFC 3339, when it was due again after a snooze
	HeaderFaultAt       = "leat_fault_at"        // RFC 3339, when it last failed and was poisoned
	HeaderFaultGroup    = "leat_fault_group"
	HeaderFaultHandler  = "leat_fault_handler"
	HeaderFaultTopic    = "leat_fault_topic"
	HeaderFaultHost     = "leat_fault_host"
	HeaderFaultPID      = "leat_fault_pid"
	HeaderFaultBuild    = "leat_fault_build" // version of the main module

	// HeaderFaultStack is the stack of a panic, at most 4 KiB. It is only in the record of a poison queue, never on a message
	// that is published.
	HeaderFaultStack = "leat_fault_stack"
)

// maxFaultStack bounds the stack in a fault, in bytes.
const maxFaultStack = 4 << 10

// faultPrefix begins the names of all fault headers.
const faultPrefix = "leat_fault_"

// Fault describes why a message was poisoned.
type Fault struct {
	Err      error // nil if the fault was read from headers; then Text has the text
	Text     string
	Class    string
	Chain    string
	Stack    string // of a panic; whole lines, innermost call first
	TraceID  string
	Attempts int
	Tries    int
	FirstAt  time.Time // when the group got the message
	FailedAt time.Time // when the handler first failed
	At       time.Time // when the handler last failed
	Group    string
	Handler  string
	Topic    string
	Host     string
	PID      int
	Build    string
}

// NewFault returns a fault that describes the failure of a delivery now and in this process. The bus adds the handler's name
// and the number of its tries.
func NewFault(d *Delivery, err error) Fault {
	where, now := thisProcess(), time.Now()
	f := Fault{
		Err:      err,
		Text:     OneLine(errorText(err), MaxErrorBytes),
		Class:    OneLine(ErrorClass(err), MaxClassBytes),
		Chain:    ErrorChain(err),
		TraceID:  TraceID(d.Message.Metadata[HeaderTraceParent]),
		Attempts: d.Attempt,
		Tries:    1,
		FirstAt:  d.FirstSeen,
		FailedAt: d.FailedSince,
		At:       now,
		Group:    d.Group,
		Handler:  d.Group,
		Topic:    d.Topic,
		Host:     where.host,
		PID:      where.pid,
		Build:    where.build,
	}
	if f.FailedAt.IsZero() {
		f.FailedAt = now
	}
	if panicked, ok := errors.AsType[*PanicError](err); ok {
		f.Stack = wholeLines(panicked.Stack(), maxFaultStack)
	}
	return f
}

// TraceID returns the trace id in a W3C traceparent, "" if there is none.
func TraceID(parent string) string {
	fields := strings.Split(parent, "-")
	if len(fields) < 4 || len(fields[1]) != 32 {
		return ""
	}
	return fields[1]
}

// wholeLines truncates a text after the last line that fits.
func wholeLines(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return text[:strings.LastIndexByte(text[:limit], '\n')+1]
}

// Record writes the fault with its stack into the headers that a poison queue stores.
func (f Fault) Record(headers message.Metadata) {
	f.Set(headers)
	if f.Stack != "" {
		headers[HeaderFaultStack] = f.Stack
	}
}

// Set writes the fault into headers, except for the stack, which is too long for the headers of a published message.
func (f Fault) Set(headers message.Metadata) {
	headers[HeaderFaultError] = f.Text
	headers[HeaderFaultClass] = f.Class
	headers[HeaderFaultChain] = f.Chain
	headers[HeaderFaultAttempts] = strconv.Itoa(f.Attempts)
	headers[HeaderFaultTries] = strconv.Itoa(f.Tries)
	headers[HeaderFaultAt] = FormatTime(f.At)
	headers[HeaderFaultGroup] = f.Group
	headers[HeaderFaultHandler] = f.Handler
	headers[HeaderFaultTopic] = f.Topic
	headers[HeaderFaultHost] = f.Host
	headers[HeaderFaultPID] = strconv.Itoa(f.PID)
	headers[HeaderFaultBuild] = f.Build
	if f.TraceID != "" {
		headers[HeaderFaultTrace] = f.TraceID
	}
	if !f.FirstAt.IsZero() {
		headers[HeaderFaultFirstAt] = FormatTime(f.FirstAt)
	}
	if !f.FailedAt.IsZero() {
		headers[HeaderFaultFailedAt] = FormatTime(f.FailedAt)
	}
}

// FaultOf returns the fault in the headers of a poisoned message.
func FaultOf(headers message.Metadata) Fault {
	return Fault{
		Text:     headers[HeaderFaultError],
		Class:    headers[HeaderFaultClass],
		Chain:    headers[HeaderFaultChain],
		Stack:    headers[HeaderFaultStack],
		TraceID:  headers[HeaderFaultTrace],
		Attempts: atoi(headers[HeaderFaultAttempts]),
		Tries:    atoi(headers[HeaderFaultTries]),
		FirstAt:  ParseTime(headers[HeaderFaultFirstAt]),
		FailedAt: ParseTime(headers[HeaderFaultFailedAt]),
		At:       ParseTime(headers[HeaderFaultAt]),
		Group:    headers[HeaderFaultGroup],
		Handler:  headers[HeaderFaultHandler],
		Topic:    headers[HeaderFaultTopic],
		Host:     headers[HeaderFaultHost],
		PID:      atoi(headers[HeaderFaultPID]),
		Build:    headers[HeaderFaultBuild],
	}
}

// ClearFault deletes the fault headers, as a replay does. It also deletes the name of the bus that published the message: that
// bus counted the message as poisoned, and does not track it any more.
func ClearFault(headers message.Metadata) {
	delete(headers, HeaderInstance)
	for key := range headers {
		if len(key) > len(faultPrefix) && key[:len(faultPrefix)] == faultPrefix {
			delete(headers, key)
		}
	}
}

// process identifies the process in which a fault happened.
type process struct {
	host  string
	pid   int
	build string
}

//nolint:gochecknoglobals // computed once: it does not change
var thisProcess = sync.OnceValue(func() process {
	p := process{pid: os.Getpid(), build: "unknown"}
	p.host, _ = os.Hostname()
	if info, ok := debug.ReadBuildInfo(); ok {
		p.build = info.Main.Path + "@" + info.Main.Version
	}
	return p
})

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// SetHistory writes a message's history into the headers with which it is redelivered, for transports that have no other place
// for it. It deletes the headers of values that are zero or unknown.
func SetHistory(headers message.Metadata, h History) {
	set := func(name, value string, known bool) {
		if known {
			headers[name] = value
		} else {
			delete(headers, name)
		}
	}
	set(HeaderFaultFailedAt, FormatTime(h.FailedSince), !h.FailedSince.IsZero())
	set(HeaderFaultFailures, strconv.Itoa(h.Failures), !h.FailedSince.IsZero() && h.Failures >= 0)
	set(HeaderFaultWaiting, FormatTime(h.WaitingSince), !h.WaitingSince.IsZero())
	set(HeaderFaultDue, FormatTime(h.DueAgain), !h.DueAgain.IsZero())
}

// TakeHistory deletes the headers that [SetHistory] writes and returns the history in them. Any producer may have written the
// headers: values that can't be read count as zero or unknown.
func TakeHistory(headers message.Metadata) (h History) {
	h.WaitingSince = ParseTime(headers[HeaderFaultWaiting])
	h.DueAgain = ParseTime(headers[HeaderFaultDue])
	if h.FailedSince = ParseTime(headers[HeaderFaultFailedAt]); !h.FailedSince.IsZero() {
		h.Failures = FailuresUnknown
		if n, err := strconv.Atoi(headers[HeaderFaultFailures]); err == nil {
			h.Failures = max(n, 0)
		}
	}
	delete(headers, HeaderFaultFailedAt)
	delete(headers, HeaderFaultFailures)
	delete(headers, HeaderFaultWaiting)
	delete(headers, HeaderFaultDue)
	return h
}
