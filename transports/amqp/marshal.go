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
	// attributePrefix stands before a CloudEvents attribute in a header's name, in leat and on the
	// wire (AMQP binding, binary mode). The second wire form is for the older binding; it is read.
	attributePrefix     = "ce_"
	wirePrefix          = "cloudEvents_"
	wirePrefixAlternate = "cloudEvents:"

	wireVersion     = wirePrefix + "specversion"
	wireContentType = wirePrefix + "datacontenttype"
)

// maxHeaderBytes is how much of a frame a message's own headers may take. A header table must
// fit one frame: the broker closes the connection over a larger one. The rest of the frame is
// for what comes to a message later: the delay, the fault, the broker's own notes (x-death).
func maxHeaderBytes(frame int) int { return frame - min(16<<10, frame/2) }

// marshal writes a message as CloudEvents in binary mode. Headers that are no attributes travel
// under their own names.
func marshal(msg *message.Message, topic string, cfg *Config, frame int) (amqp.Publishing, error) {
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
	if size += len(fieldText(h[headerExtra])); size > maxHeaderBytes(frame) {
		return p, fmt.Errorf("message %s has %d bytes of headers; at most %d fit in a frame; put large data into the payload",
			driver.MessageID(msg), size, maxHeaderBytes(frame))
	}
	return p, nil
}

// fieldOverhead is what a field of a table takes beside its name and value.
const fieldOverhead = 1 + 1 + 4

// setIdentity fills the properties that other software looks at.
func setIdentity(p *amqp.Publishing, msg *message.Message, cfg *Config) {
	if correlation := msg.Metadata[driver.HeaderCorrelationID]; len(correlation) <= maxNameBytes {
		p.CorrelationId = correlation
	}
	if len(msg.UUID) <= maxNameBytes {
		p.MessageId = msg.UUID
	}
	if p.MessageId == "" || cfg.Topology == TopologyWatermill {
		p.Headers[headerWatermillUUID] = msg.UUID
	}
	version, has := msg.Metadata[driver.HeaderSpecVersion]
	switch {
	case has:
		p.Headers[headerVersion] = version
	case msg.Metadata[driver.HeaderID] != "":
		p.Headers[wireVersion] = "1.0" // the binding wants it; where a leat header is missing, it is 1.0
	}
}

// wireName is the header's name on the wire, "" for one that would be taken for something else there.
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

// plainAttribute reports whether leat has a CloudEvents extension under its own name, as W3C Trace
// Context wants it.
func plainAttribute(name string) bool {
	switch name {
	case driver.HeaderCorrelationID, driver.HeaderCausationID, driver.HeaderTraceParent, driver.HeaderTraceState, driver.HeaderBaggage:
		return true
	}
	return false
}

// brokersOwn are the headers that RabbitMQ writes, or acts upon.
func brokersOwn(name string) bool {
	switch name {
	case "CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count", "x-opt-deaths":
		return true
	}
	return strings.HasPrefix(name, "x-first-death-") || strings.HasPrefix(name, "x-last-death-")
}

// setExtra keeps headers whose names can't stand on the wire in one of leat's own.
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
	text, err := json.Marshal(pairs) // base64, so that any bytes come back
	h[headerExtra] = string(text)
	return err
}

// fitting is the first text that a short string can hold.
func fitting(texts ...string) string {
	for _, s := range texts {
		if s != "" && len(s) <= maxNameBytes {
			return s
		}
	}
	return ""
}
