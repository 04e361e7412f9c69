package admin

import (
	"cmp"
	"fmt"
	"maps"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// A Record is a poisoned message in JSON: in lists, in export files and at the admin endpoint. Its field
// names are stable. The fields after Parked are in full records only. UUID, topic, headers and data are those of the
// message, byte for byte.
type Record struct {
	ID       string     `json:"id"` // in the poison queue
	Group    string     `json:"group"`
	Topic    string     `json:"topic"`
	EventID  string     `json:"event_id"`
	Source   string     `json:"source,omitempty"`
	Type     string     `json:"type"`
	Version  int        `json:"version"`
	Key      string     `json:"key,omitempty"`
	Class    string     `json:"class"`
	Error    string     `json:"error"`
	Attempts int        `json:"attempts"`
	Tries    int        `json:"tries"`
	FirstAt  *time.Time `json:"first_at,omitempty"`  // when the group got it
	FailedAt *time.Time `json:"failed_at,omitempty"` // when its handler first failed with it
	At       *time.Time `json:"at,omitempty"`        // when it failed last and was poisoned
	TraceID  string     `json:"trace_id,omitempty"`
	Handler  string     `json:"handler,omitempty"`
	Host     string     `json:"host,omitempty"`
	PID      int        `json:"pid,omitempty"`
	Build    string     `json:"build,omitempty"`
	Parked   int        `json:"parked,omitempty"` // messages that wait behind it, if known

	Chain string `json:"chain,omitempty"` // of errors, the outermost first
	Stack string `json:"stack,omitempty"` // of a panic

	UUID       string            `json:"uuid,omitempty"`
	Headers    map[string]string `json:"headers,omitempty"`
	RawHeaders map[string][]byte `json:"headers_base64,omitempty"` // those that are not valid UTF-8
	Data       string            `json:"data,omitempty"`
	RawData    []byte            `json:"data_base64,omitempty"` // a payload that is not valid UTF-8
}

// Summary returns a record without headers and data.
func Summary(group string, m driver.PoisonedMessage) Record {
	f, envelope := m.Fault, bus.EnvelopeOf(m.Message)
	r := Record{
		ID:       m.ID,
		Group:    group,
		Topic:    m.Topic(),
		EventID:  envelope.ID,
		Source:   envelope.Source,
		Type:     cmp.Or(envelope.Type, m.Topic()),
		Key:      envelope.PartitionKey,
		Class:    f.Class,
		Error:    f.Text,
		Attempts: f.Attempts,
		Tries:    f.Tries,
		FirstAt:  instant(f.FirstAt),
		FailedAt: instant(f.FailedAt),
		At:       instant(f.At),
		TraceID:  f.TraceID,
		Handler:  f.Handler,
		Host:     f.Host,
		PID:      f.PID,
		Build:    f.Build,
		Parked:   max(m.Parked, 0),
	}
	if t, err := typeOf(m); err == nil {
		r.Type, r.Version = t.Name, t.Version
	}
	return r
}

// Full returns a record with headers and data.
func Full(group string, m driver.PoisonedMessage) Record {
	r := Summary(group, m)
	r.UUID, r.Chain, r.Stack = m.Message.UUID, m.Fault.Chain, m.Fault.Stack
	r.Headers = make(map[string]string, len(m.Message.Metadata))
	for name, value := range m.Message.Metadata {
		if utf8.ValidString(value) {
			r.Headers[name] = value
			continue
		}
		if r.RawHeaders == nil {
			r.RawHeaders = make(map[string][]byte)
		}
		r.RawHeaders[name] = []byte(value)
	}
	if utf8.Valid(m.Message.Payload) {
		r.Data = string(m.Message.Payload)
	} else {
		r.RawData = m.Message.Payload
	}
	return r
}

// Message returns the message of a full record.
func (r Record) Message() (driver.PoisonedMessage, error) {
	if len(r.Headers)+len(r.RawHeaders) == 0 {
		return driver.PoisonedMessage{}, fmt.Errorf("record %s has no headers; export writes them, ls does not", cmp.Or(r.ID, r.EventID))
	}
	msg := message.NewMessage(r.UUID, []byte(r.Data))
	if len(r.RawData) > 0 {
		msg.Payload = r.RawData
	}
	maps.Copy(msg.Metadata, r.Headers)
	for name, value := range r.RawHeaders {
		msg.Metadata[name] = string(value)
	}
	if r.Topic != "" && msg.Metadata[driver.HeaderFaultTopic] == "" {
		msg.Metadata[driver.HeaderFaultTopic] = r.Topic
	}
	return driver.PoisonedMessage{ID: r.ID, Message: msg, Fault: driver.FaultOf(msg.Metadata)}, nil
}

// typeOf returns the event type of the message's headers.
func typeOf(m driver.PoisonedMessage) (bus.Type, error) {
	return (&bus.Delivery{Delivery: driver.Delivery{Message: m.Message, Topic: m.Topic()}}).Type()
}

// instant returns a pointer to the time, nil for the zero time.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
