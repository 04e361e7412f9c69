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

// EnvelopeFrom returns the envelope of the message being handled; ok is false outside a handler.
func EnvelopeFrom(ctx context.Context) (e Envelope, ok bool) {
	d := DeliveryFrom(ctx)
	if d == nil {
		return Envelope{}, false
	}
	return EnvelopeOf(d.Message), true
}

// Identity returns what tells the message's event from all others: its source and its id, since CloudEvents makes ids unique per
// source only; or its source, its event's name in any version, and its dedup key. It is empty if the message has neither
// key nor id.
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

// sized writes a string so that what follows it can't be taken for a part of it.
func sized(s string) string { return strconv.Itoa(len(s)) + ":" + s + ":" }

// NewID returns a new UUIDv7: unique, and ordered by time. It may be called concurrently.
func NewID() string { return ids.New() }

// ReplyID returns the id of an event that the group makes of the delivery's message: the same at every try and
// redelivery, so that consumers of the reply see a duplicate. It is a UUIDv5 of the group and the message's Identity,
// or a new UUIDv7 if the message has none.
func (d *Delivery) ReplyID() string {
	identity := d.Identity()
	if identity == "" {
		return NewID()
	}
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(replyPrefix+sized(d.Group)+identity)).String()
}

// replyPrefix begins the names of reply ids. It must not change.
const replyPrefix = "https://github.com/leatbus/leat/reply/"
