package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Edit returns a poisoned message with another payload and with headers set, or removed if their value is empty.
// It returns an error for a private header of leat, and if the old payload is valid JSON and the new one is not.
func Edit(m driver.PoisonedMessage, payload []byte, headers map[string]string) (driver.PoisonedMessage, error) {
	was := m.Message.Payload
	m.Message = m.Message.Copy()
	for name, value := range headers {
		switch {
		case strings.HasPrefix(name, "leat_"):
			return m, fmt.Errorf("the header %s is leat's own", name)
		case value == "":
			delete(m.Message.Metadata, name)
		default:
			m.Message.Metadata[name] = value
		}
	}
	m.Message.Payload = payload
	if json.Valid(was) && !json.Valid(payload) {
		return m, errors.New("the payload was JSON, and the new one is not; nothing was changed")
	}
	return m, nil
}

// An Event is a CloudEvent to publish. An empty ID is replaced by a new one.
type Event struct {
	Type, ID, Source, Subject, Key string
	ContentType                    string // empty means JSON
	Data                           []byte
}

// ErrNoJSON is returned for an event whose data is not JSON and that has no content type.
var ErrNoJSON = errors.New("the data is not JSON; set its content type")

// Message returns the event as a message. Its type is the topic. It returns [ErrNoJSON], and an error for a type that is not a
// valid topic.
func (e Event) Message() (*message.Message, error) {
	if err := driver.ValidateTopic(e.Type); err != nil {
		return nil, err
	}
	if e.ContentType == "" && len(e.Data) > 0 && !json.Valid(e.Data) {
		return nil, ErrNoJSON
	}
	if e.ID == "" {
		e.ID = bus.NewID()
	}
	msg := message.NewMessage(e.ID, e.Data)
	for name, value := range map[string]string{
		driver.HeaderID:           e.ID,
		driver.HeaderType:         e.Type,
		driver.HeaderSource:       e.Source,
		driver.HeaderTime:         time.Now().UTC().Format(time.RFC3339Nano),
		driver.HeaderSubject:      e.Subject,
		driver.HeaderPartitionKey: e.Key,
		driver.HeaderContentType:  e.ContentType,
	} {
		if value != "" {
			msg.Metadata[name] = value
		}
	}
	return msg, nil
}
