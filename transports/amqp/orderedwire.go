package amqp

import (
	"fmt"
	"regexp"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// How the queues and the messages of an ordered group look on the broker; see the package ordered for what they mean.

// strictKey is the one key of all messages in a strictly ordered group.
const strictKey = "\x00strict"

// parkedPattern is how such a name ends.
var parkedPattern = regexp.MustCompile(`\.parked\.[1-9][0-9]?[ab]$`)

func keysName(group string) string { return group + keysSuffix }

// parkedName is one side of a pair of parked queues, such as shop.mail.parked.1a.
func parkedName(group string, from ordered.Source) string {
	return fmt.Sprintf("%s%s%d%c", group, parkedInfix, from.Pair, "ab"[from.Side])
}

// parkedNames are the queues of the pairs that every process of an ordered group declares.
func parkedNames(group string) (names []string) {
	for pair := 1; pair <= parkedPairs; pair++ {
		for side := range ordered.Side(2) {
			names = append(names, parkedName(group, ordered.Source{Pair: pair, Side: side}))
		}
	}
	return names
}

// orderKey is the key within which the messages of a subscription keep their order, "" for none.
func orderKey(order driver.Order, partitionKey string) string {
	if order == driver.OrderedStrictly {
		return strictKey
	}
	return shortKey(partitionKey)
}

// setName writes a name that is not zero.
func setName(h amqp.Table, header string, name ordered.Name) {
	if name != (ordered.Name{}) {
		h[header] = name.String()
	}
}

// nameIn reads a name; anything else is the zero name.
func nameIn(h amqp.Table, header string) (name ordered.Name) {
	if text, ok := h[header].(string); ok {
		name, _ = ordered.ParseName(text)
	}
	return name
}

// headOf is the name under which a message was sent away: into a delay, or into the poison queue. An earlier version gave
// what it poisoned a place instead.
func headOf(d *amqp.Delivery) string {
	if head, ok := d.Headers[headerHead].(string); ok {
		return head
	}
	if p, ok := placeOf(d); ok {
		return placeName(p.at)
	}
	return ""
}

// placeName is the name of a message that an earlier version has poisoned.
func placeName(at int64) string { return fmt.Sprintf("place-%d", at) }

// setCopyHeaders writes what a copy of a message tells about its way through the group.
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

// controlMessage makes a message that is not the application's.
func controlMessage(queue string, control ordered.Control, head, partitionKey string, name ordered.Name) *outgoing {
	h := amqp.Table{headerNote: string(control)}
	if head != "" {
		h[headerHead] = head
	}
	if partitionKey != "" {
		h[driver.HeaderPartitionKey] = partitionKey
	}
	setName(h, headerName, name)
	return &outgoing{key: queue, msg: amqp.Publishing{MessageId: ids.New(), DeliveryMode: amqp.Persistent, Headers: h}}
}
