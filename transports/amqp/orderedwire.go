package amqp

import (
	"fmt"
	"regexp"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// This file has the names of an ordered group's queues and the format of its messages; the package ordered has their meaning.

// strictKey is the one key of all messages in a strictly ordered group.
const strictKey = "\x00strict"

// parkedPattern matches the end of a parked queue's name.
var parkedPattern = regexp.MustCompile(`\.parked\.[1-9][0-9]?[ab]$`)

func keysName(group string) string { return group + keysSuffix }

// parkedName returns one side of a pair of parked queues, such as shop.mail.parked.1a.
func parkedName(group string, from ordered.Source) string {
	return fmt.Sprintf("%s%s%d%c", group, parkedInfix, from.Pair, "ab"[from.Side])
}

// parkedNames returns the queues of the pairs that every process of an ordered group declares.
func parkedNames(group string) (names []string) {
	for pair := 1; pair <= parkedPairs; pair++ {
		for side := range ordered.Side(2) {
			names = append(names, parkedName(group, ordered.Source{Pair: pair, Side: side}))
		}
	}
	return names
}

// orderKey returns the key within which the messages of a subscription keep their order, "" for none.
func orderKey(order driver.Order, partitionKey string) string {
	if order == driver.OrderedStrictly {
		return strictKey
	}
	return shortKey(partitionKey)
}

// setName sets a header to a name, unless it is zero.
func setName(h amqp.Table, header string, name ordered.Name) {
	if name != (ordered.Name{}) {
		h[header] = name.String()
	}
}

// nameIn returns the name in a header, or the zero name if there is none.
func nameIn(h amqp.Table, header string) (name ordered.Name) {
	if text, ok := h[header].(string); ok {
		name, _ = ordered.ParseName(text)
	}
	return name
}

// headOf returns the name under which a message was sent to a delay or to the poison queue. Messages that an earlier version
// poisoned have a position instead.
func headOf(d *amqp.Delivery) string {
	if head, ok := d.Headers[headerHead].(string); ok {
		return head
	}
	if p, ok := legacyPositionOf(d); ok {
		return legacyName(p.at)
	}
	return ""
}

// legacyName returns the name of a message that an earlier version poisoned.
func legacyName(at int64) string { return fmt.Sprintf("place-%d", at) }

// setCopyHeaders sets the headers that the machine gives a copy.
func setCopyHeaders(h amqp.Table, c ordered.Copy) {
	if c.Head != "" {
		h[headerHead] = c.Head
	}
	setName(h, headerSeq, c.Seq)
	setName(h, headerStamp, c.Stamp)
	if c.Repeat {
		h[headerRepeat] = true
	}
}

// controlMessage returns a control message.
func controlMessage(queue string, control ordered.Control, head, partitionKey string, name ordered.Name) *outgoing {
	h := amqp.Table{headerControl: string(control)}
	if head != "" {
		h[headerHead] = head
	}
	if partitionKey != "" {
		h[driver.HeaderPartitionKey] = partitionKey
	}
	setName(h, headerName, name)
	return &outgoing{key: queue, msg: amqp.Publishing{MessageId: ids.New(), DeliveryMode: amqp.Persistent, Headers: h}}
}
