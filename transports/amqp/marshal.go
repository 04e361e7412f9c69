package amqp

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// attributePrefix begins the names of headers for CloudEvents attributes in leat; wirePrefix on the wire (AMQP binding,
	// binary mode). wirePrefixAlternate is of an older binding; it is read only.
	attributePrefix     = "ce_"
	wirePrefix          = "cloudEvents_"
	wirePrefixAlternate = "cloudEvents:"

	wireVersion     = wirePrefix + "specversion"
	wireContentType = wirePrefix + "datacontenttype"
)

// maxHeaderBytes returns how much of a frame a message's own headers may take. A header table must
// fit one frame: the broker closes the connection over a larger one. The rest of the frame is
// for headers that are added later: delays, faults, and those of the broker (x-death).
func maxHeaderBytes(frame int) int { return frame - min(16<<10, frame/2) }

// marshal encodes a message as CloudEvents in binary mode. Other headers keep their names.
func marshal(msg *message.Message, topic string, cfg *Config, frame int) (amqp.Publishing, error) {
	if names := cfg.stock; names != nil && names.marshaler != nil {
		p, err := names.marshal(msg, topic, cfg)
		if err == nil {
			err = fitsFrame(msg, tableSize(p.Headers), frame)
		}
		return p, err
	}
	h := make(amqp.Table, len(msg.Metadata)+4)
	p := amqp.Publishing{
		Headers:      h,
		Body:         msg.Payload,
		DeliveryMode: amqp.Persistent,
		Timestamp:    time.Now(),
		Type:         fitting(msg.Metadata[driver.HeaderType], topic),
		AppId:        fitting(cfg.AppID),
	}
	var extra message.Metadata
	size := 0
	for name, value := range msg.Metadata {
		wire := wireName(name)
		switch {
		case name == driver.HeaderContentType && value != "" && len(value) <= maxNameBytes:
			p.ContentType = value
			continue
		case wire == "":
			if extra == nil {
				extra = make(message.Metadata)
			}
			extra[name] = value
			continue
		}
		h[wire] = value
		size += len(wire) + len(value) + fieldOverhead
	}
	setIdentity(&p, msg, cfg)
	if instance := msg.Metadata[driver.HeaderInstance]; instance != "" {
		h[headerOwn] = ownMark(cfg.ownKey, instance, driver.MessageID(msg))
	}
	if err := setExtra(h, extra); err != nil {
		return p, fmt.Errorf("message %s: %w", driver.MessageID(msg), err)
	}
	size += len(fieldText(h[headerExtra]))
	if cfg.stock != nil && cfg.stock.process != nil {
		p = cfg.stock.process(p)
		p.DeliveryMode = amqp.Persistent
		size = tableSize(p.Headers)
	}
	return p, fitsFrame(msg, size, frame)
}

func fitsFrame(msg *message.Message, size, frame int) error {
	if size <= maxHeaderBytes(frame) {
		return nil
	}
	return fmt.Errorf("message %s has %d bytes of headers; at most %d fit in a frame; put large data into the payload",
		driver.MessageID(msg), size, maxHeaderBytes(frame))
}

// fieldOverhead is how many bytes a field of a table takes in addition to its name and value.
const fieldOverhead = 1 + 1 + 4

// setIdentity sets the properties that other software uses.
func setIdentity(p *amqp.Publishing, msg *message.Message, cfg *Config) {
	if correlation := msg.Metadata[driver.HeaderCorrelationID]; len(correlation) <= maxNameBytes {
		p.CorrelationId = correlation
	}
	if len(msg.UUID) <= maxNameBytes {
		p.MessageId = msg.UUID
	}
	if cfg.stock != nil {
		p.Headers[cfg.stock.uuidHeader] = msg.UUID
	} else if p.MessageId == "" {
		p.Headers[headerWatermillUUID] = msg.UUID
	}
	version, has := msg.Metadata[driver.HeaderSpecVersion]
	switch {
	case has:
		p.Headers[headerVersion] = version
	case msg.Metadata[driver.HeaderID] != "":
		p.Headers[wireVersion] = "1.0" // required by the binding; the default in leat
	}
}

// wireName returns the header's name on the wire, "" if it would have another meaning there.
func wireName(name string) string {
	if attribute, ok := strings.CutPrefix(name, attributePrefix); ok && attribute != "" {
		if len(wirePrefix)+len(attribute) > maxNameBytes || plainAttribute(attribute) || !utf8.ValidString(attribute) {
			return ""
		}
		return wirePrefix + attribute
	}
	switch {
	case name == "", len(name) > maxNameBytes, !utf8.ValidString(name),
		strings.HasPrefix(name, wirePrefix), strings.HasPrefix(name, wirePrefixAlternate),
		strings.HasPrefix(name, privatePrefix), brokersOwn(name), name == headerWatermillUUID:
		return ""
	}
	return name
}

// plainAttribute reports whether a CloudEvents extension has no prefix in leat, as W3C Trace Context requires.
func plainAttribute(name string) bool {
	switch name {
	case driver.HeaderCorrelationID, driver.HeaderCausationID, driver.HeaderTraceParent, driver.HeaderTraceState, driver.HeaderBaggage:
		return true
	}
	return false
}

// brokersOwn reports whether RabbitMQ writes or interprets a header of this name.
func brokersOwn(name string) bool {
	switch name {
	case "CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count", "x-opt-deaths":
		return true
	}
	return strings.HasPrefix(name, "x-first-death-") || strings.HasPrefix(name, "x-last-death-")
}

// setExtra puts headers whose names are not allowed on the wire into one of leat's headers.
func setExtra(h amqp.Table, extra message.Metadata) error {
	if extra == nil {
		return nil
	}
	pairs := make(map[string][]byte, len(extra))
	for name, value := range extra {
		if !utf8.ValidString(name) {
			return fmt.Errorf("header name %q is not valid UTF-8", name)
		}
		pairs[name] = []byte(value)
	}
	text, err := json.Marshal(pairs) // values in base64, because they may be any bytes
	h[headerExtra] = string(text)
	return err
}

// fitting returns the first text that fits in a short string.
func fitting(texts ...string) string {
	for _, s := range texts {
		if s != "" && len(s) <= maxNameBytes {
			return s
		}
	}
	return ""
}
