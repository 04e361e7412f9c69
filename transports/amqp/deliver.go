package amqp

import (
	"context"
	"fmt"
	"maps"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus"
)

// deliver publishes one of leat's own copies, which must reach a queue. Where it reaches none, the
// topology is made again, once.
func (t *Transport) deliver(ctx context.Context, o *outgoing) error {
	if err := t.publisher.send(ctx, []*outgoing{o}); err != nil || !o.unroutable {
		return err
	}
	if err := t.declare(ctx, func(ch *amqp.Channel) error { return t.topology.declareAll(ctx, ch) }); err != nil {
		return err
	}
	o.confirmed, o.unroutable = false, false
	if err := t.publisher.send(ctx, []*outgoing{o}); err != nil {
		return err
	}
	if o.unroutable {
		return fmt.Errorf("queue %q is not there", o.key)
	}
	return nil
}

// toPoison puts a copy into the group's poison queue, with the fault in its headers, and its place among
// the held messages where it has one. Where a foreign producer has filled the headers, the stack stays
// out: a frame is all that they have.
func (t *Transport) toPoison(ctx context.Context, it *item, fault bus.Fault, place amqp.Table) error {
	p := it.copy(it.attempts)
	noted := make(message.Metadata)
	fault.Record(noted)
	setText(p.Headers, noted)
	if tableSize(p.Headers) > maxPoisonBytes {
		delete(p.Headers, bus.HeaderFaultStack)
	}
	maps.Copy(p.Headers, place)
	p.Headers[headerPoisonID] = bus.NewID()
	p.Headers[headerQueue] = it.queue
	return t.deliver(ctx, &outgoing{key: poisonName(it.feed.sub.Group), msg: p})
}

// maxPoisonBytes is how much of a frame the headers of a poisoned message may take: the properties
// and the broker's own notes want room, too.
const maxPoisonBytes = frameMax - 8<<10

func setText(h amqp.Table, headers message.Metadata) {
	for name, value := range headers {
		h[name] = value
	}
}

// tableSize is about how many bytes a table takes on the wire, and no less.
func tableSize(h amqp.Table) (n int) {
	for name, field := range h {
		n += len(name) + len(fieldText(field)) + fieldOverhead
	}
	return n
}
