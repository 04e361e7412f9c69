package amqp

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// brokersRoom is how many bytes of a frame are reserved for headers that the broker adds.
const brokersRoom = 256

// headerLeftOut names headers of a message that did not fit into the frame of its copy, with their sizes.
const headerLeftOut = "leat_left_out"

// fit removes headers until the properties take at most limit bytes: first headers of others, then those of leat that are not
// necessary, the largest first.
func fit(p *amqp.Publishing, limit int) {
	h := p.Headers
	limit -= 64 // the frame itself, numbers, and lengths
	for _, text := range []string{p.ContentType, p.ContentEncoding, p.CorrelationId, p.ReplyTo, p.MessageId, p.Type, p.AppId} {
		limit -= len(text)
	}
	size := tableSize(h)
	if size <= limit {
		return
	}
	type header struct {
		name  string
		class int
		size  int
	}
	var all []header
	for name, field := range h {
		if class := needOf(name); class > 0 {
			all = append(all, header{name, class, fieldSize(field)})
		}
	}
	slices.SortFunc(all, func(a, b header) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(b.size, a.size), cmp.Compare(a.name, b.name))
	})
	var names []string
	if before, ok := h[headerLeftOut].(string); ok {
		names = append(names, before)
	}
	const room = 1 << 10 // for the names
	for _, x := range all {
		if size <= limit-room {
			break
		}
		delete(h, x.name)
		size -= len(x.name) + x.size + fieldOverhead
		names = append(names, fmt.Sprintf("%s (%d bytes)", strings.ToValidUTF8(x.name, "?"), x.size))
	}
	h[headerLeftOut] = driver.OneLine(strings.Join(names, ", "), room/2)
}

// needOf returns 0 for a header that leat needs, 1 for a header of others, and 2 for one of leat that is not necessary.
func needOf(name string) int {
	switch name {
	case headerExtra:
		return 2
	case headerLeftOut, headerWatermillUUID, driver.HeaderPartitionKey, wirePrefix + "id", wirePrefix + "type", wirePrefix + "source",
		wirePrefixAlternate + "id", wirePrefixAlternate + "type", wirePrefixAlternate + "source", wireVersion, wireContentType:
		return 0
	}
	switch {
	case strings.HasPrefix(name, privatePrefix):
		return 0
	case strings.HasPrefix(name, wirePrefix), strings.HasPrefix(name, wirePrefixAlternate), strings.HasPrefix(name, faultPrefix):
		return 2
	}
	return 1
}

func setText(h amqp.Table, headers message.Metadata) {
	for name, value := range headers {
		h[name] = value
	}
}

// tableSize returns how many bytes the fields of a table take on the wire, or a few more.
func tableSize(h amqp.Table) (n int) {
	for name, field := range h {
		n += len(name) + fieldSize(field) + fieldOverhead
	}
	return n
}

// fieldSize returns how many bytes one field takes, without its name.
func fieldSize(field any) (n int) {
	switch v := field.(type) {
	case string:
		return len(v)
	case []byte:
		return len(v)
	case amqp.Table:
		return tableSize(v)
	case []any:
		for _, x := range v {
			n += 1 + 4 + fieldSize(x)
		}
		return n
	}
	return 8
}
