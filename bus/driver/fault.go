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

// The headers of a poisoned message. The original headers stay as they are beside them, and replay
// takes these away again.
const (
	HeaderFaultError    = "leat_fault_error"     // one line, at most 1 KiB
	HeaderFaultClass    = "leat_fault_class"     // see [ErrorClass]
	HeaderFaultChain    = "leat_fault_chain"     // all errors of the chain, see [ErrorChain]
	HeaderFaultTrace    = "leat_fault_trace_id"  // of the message's traceparent
	HeaderFaultAttempts = "leat_fault_attempts"  // deliveries, this one included
	HeaderFaultTries    = "leat_fault_tries"     // runs of the handler over all deliveries
	HeaderFaultFirstAt  = "leat_fault_first_at"  // RFC 3339, when the group got the message
	HeaderFaultFailedAt = "leat_fault_failed_at" // RFC 3339, when the handler first failed with it
	HeaderFaultFailures = "leat_fault_failures"  // failed tries that count, of a message that is redelivered
	HeaderFaultWaiting  = "leat_fault_waiting"   // RFC 3339, since when it waits for a newer version of the service
	HeaderFaultDue      = "leat_fault_due"       // RFC 3339, when it was due again after a snooze
	HeaderFaultAt       = "leat_fault_at"        // RFC 3339, when it failed last and was poisoned
	HeaderFaultGroup    = "leat_fault_group"
	HeaderFaultHandler  = "leat_fault_handler"
	HeaderFaultTopic    = "leat_fault_topic"
	HeaderFaultHost     = "leat_fault_host"
	HeaderFaultPID      = "leat_fault_pid"
	HeaderFaultBuild    = "leat_fault_build" // version of the main module

	// HeaderFaultStack is a panic's stack, at most 4 KiB. It stands in the record of a poison queue
	// only: no message travels with it.
	HeaderFaultStack = "leat_fault_stack"
)

// maxFaultStack bounds the stack in a fault, in bytes.
const maxFaultStack = 4 << 10

// faultPrefix is what all fault headers have in common.
const faultPrefix = "leat_fault_"

// Fault is why a message went to the poison queue.
type Fault struct {
	Err      error // nil after reading a fault back from headers; Text has it then
	Text     string
	Class    string
	Chain    string
	Stack    string // of a panic; whole lines, innermost call first
	TraceID  string
	Attempts int
	Tries    int
	FirstAt  time.Time // when the group got the message
	FailedAt time.Time // when the handler first failed with it
	At       time.Time // when it failed last
	Group    string
	Handler  string
	Topic    string
	Host     string
	PID      int
	Build    string
}

// NewFault describes the failure of a delivery, as of now and in this process. The bus adds the name of the handler and
// the number of its tries.
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

// wholeLines cuts a text behind the last line that fits.
func wholeLines(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return text[:strings.LastIndexByte(text[:limit], '\n')+1]
}

// Record writes the fault into the headers that a poison queue keeps beside a message's own: what
// Set writes, and the stack.
func (f Fault) Record(headers message.Metadata) {
	f.Set(headers)
	if f.Stack != "" {
		headers[HeaderFaultStack] = f.Stack
	}
}

// Set writes the fault into headers, but for the stack, which is no header for a message that
// travels.
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

// FaultOf reads a fault back from the headers of a poisoned message.
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

// ClearFault takes the fault headers away, as a replay does, and the name of the bus that published the
// message: that one has settled its account of it.
func ClearFault(headers message.Metadata) {
	delete(headers, HeaderInstance)
	for key := range headers {
		if len(key) > len(faultPrefix) && key[:len(faultPrefix)] == faultPrefix {
			delete(headers, key)
		}
	}
}

// process is where a fault happened.
type process struct {
	host  string
	pid   int
	build string
}

//nolint:gochecknoglobals // read once: it does not change
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

// SetHistory writes a message's history into the headers with which it is redelivered, for transports that have no other
// place for it. It deletes the headers of what is zero or unknown.
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

// TakeHistory removes from a message's headers what [SetHistory] has written, and returns it. Anybody may have written
// the headers: what can't be read counts as zero or unknown.
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
