package bus

import (
	"context"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
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

// Envelope has the CloudEvents attributes of a message, its correlation and its trace.
type Envelope struct {
	ID            string
	Source        string
	Type          string
	Time          time.Time
	Subject       string
	ContentType   string
	PartitionKey  string // the subject if the message has no key
	DedupKey      string
	CorrelationID string // the ID if the message has none: then it is the first of its conversation
	CausationID   string // ID of the message whose handler published this one
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

// EnvelopeFrom returns the envelope of the message being handled; ok is false outside a handler.
func EnvelopeFrom(ctx context.Context) (e Envelope, ok bool) {
	d := DeliveryFrom(ctx)
	if d == nil {
		return Envelope{}, false
	}
	return EnvelopeOf(d.Message), true
}

// Identity returns a key that identifies the message's event among all events. If the message has a dedup key, that is made
// of the source, the event's name without its version, and the dedup key; else of the source and the id, because ids are
// unique per source only. It is empty if the message has neither a dedup key nor an id.
func (d *Delivery) Identity() string {
	msg := d.Message
	source := msg.Metadata[driver.HeaderSource]
	if key := msg.Metadata[driver.HeaderDedupKey]; key != "" {
		name := msg.Metadata[driver.HeaderType]
		if t, ok := parseType(name); ok {
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

// sized returns s with its length in front, so that concatenated strings are unambiguous.
func sized(s string) string { return strconv.Itoa(len(s)) + ":" + s + ":" }

// NewID returns a new UUIDv7, which is unique and ordered by time. It may be called concurrently.
func NewID() string { return ids.New() }

// ReplyID returns an id for an event that the handler publishes in reply to the message. It is the same in each try and
// redelivery, so that consumers of the reply can detect duplicates: a UUIDv5 of the group and the message's Identity, or a
// new UUIDv7 if the message has no Identity.
func (d *Delivery) ReplyID() string {
	identity := d.Identity()
	if identity == "" {
		return NewID()
	}
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(replyPrefix+sized(d.Group)+identity)).String()
}

// replyPrefix begins the names from which reply ids are made. It must not change.
const replyPrefix = "https://github.com/leatbus/leat/reply/"
