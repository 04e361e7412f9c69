package bus

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/leatbus/leat/bus/driver"
)

// The headers of a message: CloudEvents 1.0 attributes under "ce_", W3C Trace Context and the
// correlation under their own names. Transports map them to the native properties of their message
// system and back. Where a header is missing, specversion is 1.0 and the content type JSON.
const (
	HeaderID           = "ce_id"
	HeaderSource       = "ce_source"
	HeaderType         = "ce_type"
	HeaderTime         = "ce_time"
	HeaderSubject      = "ce_subject"
	HeaderSpecVersion  = "ce_specversion"
	HeaderContentType  = "ce_datacontenttype"
	HeaderDataSchema   = "ce_dataschema"
	HeaderPartitionKey = "ce_partitionkey"
	HeaderDedupKey     = "ce_dedupkey"

	HeaderCorrelationID = "correlationid"
	HeaderCausationID   = "causationid"
	HeaderTraceParent   = "traceparent"
	HeaderTraceState    = "tracestate"
	HeaderBaggage       = "baggage"

	// HeaderDeliverAt is the time (RFC 3339) before which the message is not handed out.
	HeaderDeliverAt = "leat_deliver_at"
	// HeaderInstance names the bus that published the message, so that a bus can tell its own
	// messages in its ledger (see [Bus.Stats]).
	HeaderInstance = "leat_instance"
)

const (
	attributePrefix = "ce_"   // stands before every CloudEvents attribute but the plain ones
	ownPrefix       = "leat_" // stands before leat's own headers
)

// plainAttribute reports whether a CloudEvents extension has a header under its own name.
func plainAttribute(name string) bool {
	switch name {
	case driver.HeaderCorrelationID, driver.HeaderCausationID, driver.HeaderTraceParent, driver.HeaderTraceState, driver.HeaderBaggage:
		return true
	default:
		return false
	}
}

// Envelope is what a message says of itself, beside its payload.
type Envelope struct {
	ID            string
	Source        string
	Type          string
	Time          time.Time
	Subject       string
	ContentType   string
	PartitionKey  string // the subject where the message names no key
	DedupKey      string
	CorrelationID string // the ID where the message names none: it began the conversation
	CausationID   string // ID of the message whose handling published this one
	TraceParent   string
	TraceState    string
}

// EnvelopeOf reads the headers of a message.
func EnvelopeOf(msg *message.Message) Envelope {
	h := msg.Metadata
	e := Envelope{
		ID:            driver.MessageID(msg),
		Source:        h[driver.HeaderSource],
		Type:          h[driver.HeaderType],
		Time:          driver.MessageTime(msg),
		Subject:       h[driver.HeaderSubject],
		ContentType:   h[driver.HeaderContentType],
		PartitionKey:  driver.PartitionKey(msg),
		DedupKey:      h[driver.HeaderDedupKey],
		CorrelationID: h[driver.HeaderCorrelationID],
		CausationID:   h[driver.HeaderCausationID],
		TraceParent:   h[driver.HeaderTraceParent],
		TraceState:    h[driver.HeaderTraceState],
	}
	if e.CorrelationID == "" {
		e.CorrelationID = e.ID
	}
	if e.ContentType == "" {
		e.ContentType = JSON{}.ContentType()
	}
	return e
}

// EnvelopeFrom is the envelope of the message being handled; ok is false outside a handler.
func EnvelopeFrom(ctx context.Context) (e Envelope, ok bool) {
	d := DeliveryFrom(ctx)
	if d == nil {
		return Envelope{}, false
	}
	return EnvelopeOf(d.Message), true
}

// MessageID is the event's id; the Watermill UUID for messages that carry no CloudEvents id.
func MessageID(msg *message.Message) string {
	if id := msg.Metadata[driver.HeaderID]; id != "" {
		return id
	}
	return msg.UUID
}

// Identity returns what tells an event from all others: its source and its id, since CloudEvents makes ids unique per
// source only; or its source, its event's name in any version, and its dedup key. It is empty if the message has neither
// key nor id.
func Identity(msg *message.Message) string {
	source := msg.Metadata[driver.HeaderSource]
	if key := msg.Metadata[driver.HeaderDedupKey]; key != "" {
		name := msg.Metadata[driver.HeaderType]
		if t, ok := ParseType(name); ok {
			name = t.Name
		}
		return "dedupkey:" + sized(source) + sized(name) + key
	}
	id := driver.MessageID(msg)
	if id == "" {
		return ""
	}
	return "id:" + sized(source) + id
}

// sized writes a string so that what follows it can't be taken for a part of it.
func sized(s string) string { return strconv.Itoa(len(s)) + ":" + s + ":" }

// MessageTime is when the event happened; the zero time where the message does not say.
func MessageTime(msg *message.Message) time.Time {
	return driver.ParseTime(msg.Metadata[driver.HeaderTime])
}

// DeliverAt returns the time before which the message is not handed out; the zero time if it has none.
func DeliverAt(msg *message.Message) time.Time {
	return driver.ParseTime(msg.Metadata[driver.HeaderDeliverAt])
}

// PartitionKey is the key by which order is kept: the CloudEvents partitionkey, else the subject.
func PartitionKey(msg *message.Message) string {
	if key := msg.Metadata[driver.HeaderPartitionKey]; key != "" {
		return key
	}
	return msg.Metadata[driver.HeaderSubject]
}

// TopicOf is where a message belongs by its own account: its ce_type.
func TopicOf(msg *message.Message) string { return msg.Metadata[driver.HeaderType] }

// NewID makes a UUIDv7: unique, and ordered by time.
func NewID() string {
	id, err := uuid.NewV7()
	if err != nil {
		panic("bus: no randomness: " + err.Error()) // crypto/rand does not fail on any system Go 1.24+ runs on
	}
	return id.String()
}

// ReplyID returns the id of an event that a group makes of the message that a delivery carries: the same at every try and
// redelivery, so that consumers of the reply see a duplicate. It is a UUIDv5 of the group and the message's [Identity],
// or a new UUIDv7 if the message has none.
func ReplyID(d *Delivery) string {
	identity := Identity(d.Message)
	if identity == "" {
		return NewID()
	}
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(replyPrefix+sized(d.Group)+identity)).String()
}

// replyPrefix begins the names of reply ids. It must not change.
const replyPrefix = "https://github.com/leatbus/leat/reply/"

// traceID is the trace id in a W3C traceparent, "" where there is none.
func traceID(parent string) string {
	fields := strings.Split(parent, "-")
	if len(fields) < 4 || len(fields[1]) != 32 {
		return ""
	}
	return fields[1]
}

// newTraceParent begins a trace: version 00, random trace and parent ids, not sampled. A tracing
// observer or middleware that knows better overwrites it. The ids must be unique, not secret.
func newTraceParent() string {
	var ids [24]byte
	for i := 0; i < len(ids); i += 8 {
		binary.BigEndian.PutUint64(ids[i:], rand.Uint64()|1) // all zero would be invalid
	}
	text := make([]byte, 0, 55)
	text = append(text, "00-"...)
	text = hex.AppendEncode(text, ids[:16])
	text = append(text, '-')
	text = hex.AppendEncode(text, ids[16:])
	text = append(text, "-00"...)
	return string(text)
}
