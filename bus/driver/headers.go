package driver

import (
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// The headers of a message. CloudEvents 1.0 attributes have the prefix "ce_"; W3C Trace Context and correlation have none.
// Transports map them to the native properties of their message system and back. If the headers are missing, the specversion
// is 1.0 and the content type is JSON.
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

	// HeaderDeliverAt is the time (RFC 3339) before which the message is not delivered.
	HeaderDeliverAt = "leat_deliver_at"
	// HeaderInstance identifies the bus that published the message, so that a bus recognizes its own messages (see
	// bus.Stats).
	HeaderInstance = "leat_instance"
)

// MessageID returns the event's id, or the Watermill UUID of a message without a CloudEvents id.
func MessageID(msg *message.Message) string {
	if id := msg.Metadata[HeaderID]; id != "" {
		return id
	}
	return msg.UUID
}

// MessageTime returns when the event happened, the zero time if the message has no such header.
func MessageTime(msg *message.Message) time.Time { return ParseTime(msg.Metadata[HeaderTime]) }

// DeliverAt returns the time before which the message is not delivered, the zero time if it has none.
func DeliverAt(msg *message.Message) time.Time { return ParseTime(msg.Metadata[HeaderDeliverAt]) }

// ParseDeliverAt returns what [DeliverAt] returns, or an error if the message's time can't be parsed. A transport calls it
// before it publishes the message.
func ParseDeliverAt(msg *message.Message) (time.Time, error) {
	at := msg.Metadata[HeaderDeliverAt]
	if at == "" {
		return time.Time{}, nil
	}
	due, err := ReadTime(at)
	if err != nil {
		return time.Time{}, fmt.Errorf("message %s: header %s: %q is no RFC 3339 time", MessageID(msg), HeaderDeliverAt, OneLine(at, 64))
	}
	return due, nil
}

// PartitionKey returns the key whose messages keep their order: the CloudEvents partitionkey, else the subject.
func PartitionKey(msg *message.Message) string {
	if key := msg.Metadata[HeaderPartitionKey]; key != "" {
		return key
	}
	return msg.Metadata[HeaderSubject]
}

// TopicOf returns the topic of a message that its headers name: its ce_type.
func TopicOf(msg *message.Message) string { return msg.Metadata[HeaderType] }
