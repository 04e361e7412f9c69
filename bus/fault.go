package bus

import (
	"errors"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// The headers of a poisoned message. The original headers stay as they are beside them, and replay
// takes these away again.
const (
	HeaderFaultError    = "leat_fault_error"     // one line, at most 1 KiB
	HeaderFaultClass    = "leat_fault_class"     // the Go type of the innermost error, see [ErrorClass]
	HeaderFaultChain    = "leat_fault_chain"     // all errors of the chain, see [ErrorChain]
	HeaderFaultTrace    = "leat_fault_trace_id"  // of the message's traceparent
	HeaderFaultAttempts = "leat_fault_attempts"  // deliveries, this one included
	HeaderFaultTries    = "leat_fault_tries"     // runs of the handler over all deliveries
	HeaderFaultFirstAt  = "leat_fault_first_at"  // RFC 3339, when the group got the message
	HeaderFaultFailedAt = "leat_fault_failed_at" // RFC 3339, when the handler first failed with it
	HeaderFaultFailures = "leat_fault_failures"  // failed tries that count, of a message that is redelivered
	HeaderFaultWaiting  = "leat_fault_waiting"   // RFC 3339, since when it waits for a newer version of the service
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

// NewFault describes the failure of a delivery, as of now.
func NewFault(d *Delivery, err error) driver.Fault {
	where, now := d.process(), time.Now()
	f := driver.Fault{
		Err:      err,
		Text:     driver.OneLine(errorText(err), driver.MaxErrorBytes),
		Class:    driver.OneLine(driver.ErrorClass(err), driver.MaxClassBytes),
		Chain:    driver.ErrorChain(err),
		TraceID:  traceID(d.Message.Metadata[driver.HeaderTraceParent]),
		Attempts: d.Attempt,
		Tries:    max(d.Try, 1),
		FirstAt:  d.FirstSeen,
		FailedAt: d.FailedSince,
		At:       now,
		Group:    d.Group,
		Handler:  d.Handler().Name,
		Topic:    d.Topic,
		Host:     where.host,
		PID:      where.pid,
		Build:    where.build,
	}
	if f.FailedAt.IsZero() {
		f.FailedAt = now
	}
	if panicked, ok := errors.AsType[*driver.PanicError](err); ok {
		f.Stack = wholeLines(panicked.Stack(), maxFaultStack)
	}
	return f
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
func (f driver.Fault) Record(headers message.Metadata) {
	f.Set(headers)
	if f.Stack != "" {
		headers[driver.HeaderFaultStack] = f.Stack
	}
}

// Set writes the fault into headers, but for the stack, which is no header for a message that
// travels.
func (f driver.Fault) Set(headers message.Metadata) {
	headers[driver.HeaderFaultError] = f.Text
	headers[driver.HeaderFaultClass] = f.Class
	headers[driver.HeaderFaultChain] = f.Chain
	headers[driver.HeaderFaultAttempts] = strconv.Itoa(f.Attempts)
	headers[driver.HeaderFaultTries] = strconv.Itoa(f.Tries)
	headers[driver.HeaderFaultAt] = driver.FormatTime(f.At)
	headers[driver.HeaderFaultGroup] = f.Group
	headers[driver.HeaderFaultHandler] = f.Handler
	headers[driver.HeaderFaultTopic] = f.Topic
	headers[driver.HeaderFaultHost] = f.Host
	headers[driver.HeaderFaultPID] = strconv.Itoa(f.PID)
	headers[driver.HeaderFaultBuild] = f.Build
	if f.TraceID != "" {
		headers[driver.HeaderFaultTrace] = f.TraceID
	}
	if !f.FirstAt.IsZero() {
		headers[driver.HeaderFaultFirstAt] = driver.FormatTime(f.FirstAt)
	}
	if !f.FailedAt.IsZero() {
		headers[driver.HeaderFaultFailedAt] = driver.FormatTime(f.FailedAt)
	}
}

// FaultOf reads a fault back from the headers of a poisoned message.
func FaultOf(headers message.Metadata) driver.Fault {
	return driver.Fault{
		Text:     headers[driver.HeaderFaultError],
		Class:    headers[driver.HeaderFaultClass],
		Chain:    headers[driver.HeaderFaultChain],
		Stack:    headers[driver.HeaderFaultStack],
		TraceID:  headers[driver.HeaderFaultTrace],
		Attempts: atoi(headers[driver.HeaderFaultAttempts]),
		Tries:    atoi(headers[driver.HeaderFaultTries]),
		FirstAt:  driver.ParseTime(headers[driver.HeaderFaultFirstAt]),
		FailedAt: driver.ParseTime(headers[driver.HeaderFaultFailedAt]),
		At:       driver.ParseTime(headers[driver.HeaderFaultAt]),
		Group:    headers[driver.HeaderFaultGroup],
		Handler:  headers[driver.HeaderFaultHandler],
		Topic:    headers[driver.HeaderFaultTopic],
		Host:     headers[driver.HeaderFaultHost],
		PID:      atoi(headers[driver.HeaderFaultPID]),
		Build:    headers[driver.HeaderFaultBuild],
	}
}

// ClearFault takes the fault headers away, as a replay does, and the name of the bus that published the
// message: that one has settled its account of it.
func ClearFault(headers message.Metadata) {
	delete(headers, driver.HeaderInstance)
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

// process is where the delivery is handled.
func (d *Delivery) process() process {
	if d.group == nil {
		return thisProcess()
	}
	return d.group.bus.process
}

func thisProcess() process {
	p := process{pid: os.Getpid(), build: "unknown"}
	p.host, _ = os.Hostname()
	if info, ok := debug.ReadBuildInfo(); ok {
		p.build = info.Main.Path + "@" + info.Main.Version
	}
	return p
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

// SetHistory writes a message's history into the headers with which it is redelivered, for transports that have no other
// place for it. It deletes the headers of what is zero or unknown.
func SetHistory(headers message.Metadata, h driver.History) {
	set := func(name, value string, known bool) {
		if known {
			headers[name] = value
		} else {
			delete(headers, name)
		}
	}
	set(driver.HeaderFaultFailedAt, driver.FormatTime(h.FailedSince), !h.FailedSince.IsZero())
	set(driver.HeaderFaultFailures, strconv.Itoa(h.Failures), !h.FailedSince.IsZero() && h.Failures >= 0)
	set(driver.HeaderFaultWaiting, driver.FormatTime(h.WaitingSince), !h.WaitingSince.IsZero())
}

// TakeHistory removes from a message's headers what [SetHistory] has written, and returns it. Anybody may have written
// the headers: what can't be read counts as zero or unknown.
func TakeHistory(headers message.Metadata) (h driver.History) {
	h.WaitingSince = driver.ParseTime(headers[driver.HeaderFaultWaiting])
	if h.FailedSince = driver.ParseTime(headers[driver.HeaderFaultFailedAt]); !h.FailedSince.IsZero() {
		h.Failures = driver.FailuresUnknown
		if n, err := strconv.Atoi(headers[driver.HeaderFaultFailures]); err == nil {
			h.Failures = max(n, 0)
		}
	}
	delete(headers, driver.HeaderFaultFailedAt)
	delete(headers, driver.HeaderFaultFailures)
	delete(headers, driver.HeaderFaultWaiting)
	return h
}
