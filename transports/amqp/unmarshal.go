package amqp

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
)

// unmarshal reads a message from any producer into msg. It never fails: a header of any type is text
// in the end, and what is missing is missing. The name of the bus that has published it stays if it is marked with the key.
func unmarshal(msg *message.Message, d *amqp.Delivery, ownKey []byte) {
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
		delete(h, driver.HeaderSpecVersion) // what a missing one means
	}
	if before := foreignDeaths(d); len(before) > 0 {
		h["x-death"] = fieldText(before)
	}
	setForeign(h, d)
	restoreExtra(h, d.Headers)

	msg.UUID = d.MessageId
	if id, ok := d.Headers[headerWatermillUUID]; ok {
		msg.UUID = fieldText(id)
	}
	if msg.UUID == "" && h[driver.HeaderID] == "" {
		msg.UUID = ids.New() // a foreign producer's; nothing can work with a message that has no name
	}
	msg.Metadata = h
	msg.Payload = d.Body
	if instance := h[driver.HeaderInstance]; instance != "" && !isOwn(d.Headers, ownKey, instance, driver.MessageID(msg)) {
		delete(h, driver.HeaderInstance)
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

// UnreadableError says that the headers of a message are lost: a producer has written headers that can't be read.
type UnreadableError struct{ Reason string }

func (e *UnreadableError) Error() string {
	return "the message's headers can't be read, and are left out: " + e.Reason
}

// plainName is a wire header's name in leat, "" for one that is not the message's own.
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

// setForeign keeps the properties that leat does not write and a foreign producer may mean.
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

// userOf is the user who has published the message, as the broker has checked it.
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
		if mayBeExtra(name) {
			h[name] = string(value)
		}
	}
}

// deaths are the entries of x-death, which the broker writes for each queue that a message was
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

// foreignDeaths are the entries of x-death that do not tell of leat's own delays, and of the message that this is a copy
// of. leat's own copies have no x-death: it is the broker's alone, which drops a message that expires in the same queue
// twice, and by it a message is trusted.
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

// handOvers are the earlier hand-overs of a delivery to the group that has the queue: those that
// leat counted, those that the broker counted because nobody settled them, and those that a foreign
// retry topology counted by dead-lettering.
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

// deliveries is how often the broker had delivered the message before, as far as it counts. RabbitMQ 4.3 counts in
// x-acquired-count what was put back by choice, too, and in x-delivery-count only what failed.
func deliveries(d *amqp.Delivery) int {
	return max(fieldInt(d.Headers["x-delivery-count"]), fieldInt(d.Headers["x-acquired-count"]))
}

// renewed is the message as it stands in its queue, to be written there anew.
func renewed(d *amqp.Delivery) amqp.Publishing {
	p := copyOf(d, "")
	for name, field := range d.Headers {
		if strings.HasPrefix(name, headerHeld) {
			p.Headers[name] = field
		}
	}
	return p
}

// topicOf is where the message was published; "" where it went to the queue directly. It is valid UTF-8.
func topicOf(d *amqp.Delivery, queue string, cfg *Config) string {
	return shortName(wireTopic(d, queue, cfg))
}

func wireTopic(d *amqp.Delivery, queue string, cfg *Config) string {
	if topic, ok := d.Headers[headerTopic].(string); ok {
		return topic
	}
	switch {
	case d.RoutingKey == queue && d.Exchange == "":
		return ""
	case cfg.Topology == TopologyWatermill && !strings.HasPrefix(d.Exchange, delayPrefix):
		return d.Exchange
	}
	return d.RoutingKey
}

// firstSeen is when the message was published, to the second; the zero time where it does not tell.
func firstSeen(d *amqp.Delivery) time.Time { return d.Timestamp }

// copyOf makes a publishing that is the same message: as it came, whatever its handler made of it,
// but for what the broker and leat note down about one delivery.
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
