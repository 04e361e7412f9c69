package amqp

import (
	"cmp"
	"encoding/json"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
)

// unmarshal reads a message from any producer into msg. It never fails: headers of any type are converted to text. The name of the
// bus that has published the message is kept only if the message is marked with the key.
// A service's own marshaler for Watermill, if there is one, decodes the message instead; if it can't, the message is marked
// as unreadable.
func unmarshal(msg *message.Message, d *amqp.Delivery, ownKey []byte, names *stockNames) {
	if names != nil && names.marshaler != nil {
		if err := names.unmarshal(msg, d); err != nil {
			if d.Headers == nil {
				d.Headers = make(amqp.Table)
			}
			d.Headers[headerTooBig] = "Watermill's marshaler: " + err.Error()
		}
		keepOwn(msg, d, ownKey)
		return
	}
	h := make(message.Metadata, len(d.Headers)+1)
	for name, field := range d.Headers {
		if name := plainName(name); name != "" {
			h[fieldName(name)] = fieldText(field)
		}
	}
	if d.ContentType != "" {
		h[driver.HeaderContentType] = d.ContentType
	}
	if d.CorrelationId != "" && h[driver.HeaderCorrelationID] == "" {
		h[driver.HeaderCorrelationID] = d.CorrelationId
	}
	if version, ok := d.Headers[headerVersion].(string); ok && len(version) <= maxNameBytes {
		h[driver.HeaderSpecVersion] = version
	} else if h[driver.HeaderSpecVersion] == "1.0" {
		delete(h, driver.HeaderSpecVersion) // the default
	}
	if before := foreignDeaths(d); len(before) > 0 {
		h["x-death"] = fieldText(before)
	}
	setForeign(h, d)
	restoreExtra(h, d.Headers)

	msg.UUID = d.MessageId
	uuid := headerWatermillUUID
	if names != nil {
		uuid = names.uuidHeader
		delete(h, uuid)
	}
	if id, ok := d.Headers[uuid]; ok {
		msg.UUID = fieldText(id)
	}
	if msg.UUID == "" && h[driver.HeaderID] == "" {
		msg.UUID = ids.New() // of a foreign producer; a message must have an id
	}
	msg.Metadata = h
	msg.Payload = d.Body
	keepOwn(msg, d, ownKey)
}

// keepOwn deletes the name of the bus that has published a message, unless the key proves it.
func keepOwn(msg *message.Message, d *amqp.Delivery, ownKey []byte) {
	if instance := msg.Metadata[driver.HeaderInstance]; instance != "" && !isOwn(d.Headers, ownKey, instance, driver.MessageID(msg)) {
		delete(msg.Metadata, driver.HeaderInstance)
	}
}

// unreadable returns why the message's headers could not be read, nil if they could.
func unreadable(d *amqp.Delivery) error {
	reason, ok := d.Headers[headerTooBig].(string)
	if !ok {
		return nil
	}
	return &UnreadableError{Reason: driver.OneLine(reason, mostReason)}
}

// An UnreadableError is the reason why the headers of a message can't be read, and are lost.
type UnreadableError struct{ Reason string }

func (e *UnreadableError) Error() string {
	return "the message's headers can't be read, and are left out: " + e.Reason
}

// plainName returns a wire header's name in leat, "" if it is not a header of the message.
func plainName(wire string) string {
	for _, prefix := range []string{wirePrefix, wirePrefixAlternate} {
		if attribute, ok := strings.CutPrefix(wire, prefix); ok && attribute != "" {
			if plainAttribute(attribute) {
				return attribute
			}
			return attributePrefix + attribute
		}
	}
	switch {
	case strings.HasPrefix(wire, privatePrefix), wire == headerWatermillUUID, wire == userHeader, brokersOwn(wire):
		return ""
	}
	return wire
}

// setForeign sets headers for properties that leat does not write and foreign producers may use.
func setForeign(h message.Metadata, d *amqp.Delivery) {
	set := func(name, value string) {
		if value != "" {
			h[name] = value
		}
	}
	set("amqp_reply_to", d.ReplyTo)
	set("amqp_content_encoding", d.ContentEncoding)
	set("amqp_expiration", d.Expiration)
	set(userHeader, userOf(d))
}

// userOf returns the user who has published the message, as the broker has checked it.
func userOf(d *amqp.Delivery) string {
	if user, ok := d.Headers[headerUser].(string); ok {
		return user
	}
	return d.UserId
}

func restoreExtra(h message.Metadata, headers amqp.Table) {
	text, ok := headers[headerExtra].(string)
	if !ok {
		return
	}
	var pairs map[string][]byte
	if json.Unmarshal([]byte(text), &pairs) != nil {
		return // not written by leat
	}
	for name, value := range pairs {
		if wireName(name) == "" { // leat writes no other headers there
			h[name] = string(value)
		}
	}
}

// deaths returns the entries of x-death, which the broker writes for each queue that a message was
// dead-lettered from.
func deaths(field any) []amqp.Table {
	list, _ := field.([]any)
	tables := make([]amqp.Table, 0, len(list))
	for _, entry := range list {
		if table, ok := entry.(amqp.Table); ok {
			tables = append(tables, table)
		}
	}
	return tables
}

// foreignDeaths returns the entries of x-death, and of the original if the message is a copy, without those of leat's delays. leat's
// own copies have no x-death, for two reasons: the broker drops a message that expires in the same queue twice, and a message
// with x-death may not be trusted.
func foreignDeaths(d *amqp.Delivery) []any {
	before, _ := d.Headers[headerDeaths].([]any)
	var foreign []any
	for _, death := range deaths(d.Headers["x-death"]) {
		if queue, _ := death["queue"].(string); !strings.HasPrefix(queue, delayPrefix) && !isRetryName(queue) {
			foreign = append(foreign, death)
		}
	}
	return append(foreign, before...)
}

// handOvers returns how often a message was delivered to the group before: counted by leat, by the broker if the delivery was not
// settled, and by a foreign retry topology that dead-letters. crashes are the deliveries that were not settled.
func handOvers(d *amqp.Delivery, queue string) (attempts, crashes int) {
	crashes = deliveries(d)
	if crashes == 0 && d.Redelivered {
		crashes = 1
	}
	attempts = fieldInt(d.Headers[headerAttempt]) + crashes
	for _, death := range deaths(d.Headers["x-death"]) {
		if name, _ := death["queue"].(string); name == queue {
			attempts += fieldInt(death["count"])
		}
	}
	return min(attempts, maxCount), min(crashes+fieldInt(d.Headers[headerCrashes]), maxCount)
}

// deliveries returns how often the broker has delivered the message before, if it counts. RabbitMQ 4.3 counts all deliveries in
// x-acquired-count, and those that failed in x-delivery-count.
func deliveries(d *amqp.Delivery) int {
	return max(fieldInt(d.Headers["x-delivery-count"]), fieldInt(d.Headers["x-acquired-count"]))
}

// renewed returns a copy of the message, to be published to its queue again.
func renewed(d *amqp.Delivery) amqp.Publishing {
	p := copyOf(d, "")
	for name, field := range d.Headers {
		if strings.HasPrefix(name, headerHeld) {
			p.Headers[name] = field
		}
	}
	return p
}

// topicOf returns the topic to which the message was published, "" if it was published to the queue directly. It is valid UTF-8.
func topicOf(d *amqp.Delivery, queue string, cfg *Config) string {
	return shortName(wireTopic(d, queue, cfg))
}

func wireTopic(d *amqp.Delivery, queue string, cfg *Config) string {
	if topic, ok := d.Headers[headerTopic].(string); ok {
		return topic
	}
	switch {
	case d.RoutingKey == queue && d.Exchange == "" && cfg.stock == nil:
		return ""
	case cfg.stock != nil:
		return cmp.Or(cfg.stock.topicOf(d.Exchange, d.RoutingKey), d.Type)
	}
	return d.RoutingKey
}

// copyOf returns a publishing of the message as it was delivered, even if its handler has changed it. Headers that the broker and
// leat add for one delivery are left out.
func copyOf(d *amqp.Delivery, topic string) amqp.Publishing {
	h := make(amqp.Table, len(d.Headers)+4)
	for name, field := range d.Headers {
		if !brokersOwn(name) && !strings.HasPrefix(name, headerDelay) && !strings.HasPrefix(name, headerHeld) {
			h[name] = field
		}
	}
	if deaths := foreignDeaths(d); deaths != nil {
		h[headerDeaths] = deaths
	}
	if user := userOf(d); user != "" {
		h[headerUser] = user
	}
	if topic != "" {
		h[headerTopic] = topic
	}
	return amqp.Publishing{
		Headers:         h,
		ContentType:     d.ContentType,
		ContentEncoding: d.ContentEncoding,
		DeliveryMode:    amqp.Persistent,
		Priority:        d.Priority,
		CorrelationId:   d.CorrelationId,
		ReplyTo:         d.ReplyTo,
		MessageId:       d.MessageId,
		Timestamp:       d.Timestamp,
		Type:            d.Type,
		AppId:           d.AppId,
		Body:            d.Body,
	}
}
