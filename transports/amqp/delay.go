package amqp

import (
	"context"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Delays work without plugins. RabbitMQ can only delay by letting messages expire from a queue, and
// only its head expires, so all messages in a queue must have the same time to live. The delay is
// therefore written in binary, in units of four seconds, and there is one queue for each digit:
//
//	exchange 19 ─1─► queue 19 (4 s · 2^19) ─expired─┐
//	   │0                                           ▼
//	   └──────────────────────────────────────► exchange 18 ─ … ─► exchange 0 ─ … ─► queue "near"
//
// Digits are headers, and exchanges look at them: a headers exchange sends a message with its digit
// set to its queue, and any other, by way of alternate-exchange, to the next exchange.
//
// A message is meant to reach "near" fifteen to nineteen seconds before its time, which stands in a
// header; one that is due sooner goes there at once. Every leat process takes messages from it, holds
// them until their time, sends them where they belong and acks them then (see warden.go). So a delay is
// exact to milliseconds, although it takes the broker a second to move a thousand messages that expire
// together, and more after a restart; it survives every process and the broker; and only its last
// seconds need a process that is alive.
//
// Quorum queues hand an expired message on at least once: it leaves one queue when the next has
// confirmed it. They keep what can't be routed for ever, and a few of those would stop all delays;
// every way through the ladder ends in a queue.
const (
	delayUnit   = 4 * time.Second
	delayLevels = 20
	delayMargin = 15 * time.Second // how early a message is meant to be near

	// maxDelay is what 20 digits hold: 48 days.
	maxDelay = delayUnit*(1<<delayLevels-1) + delayMargin

	delayPrefix = "leat.delay."
)

// ladder is the set of delay queues of one type: groups with quorum and with classic queues can live
// in one virtual host, and a queue can't change its type.
type ladder struct{ queueType QueueType }

func (l ladder) name(part string) string { return delayPrefix + string(l.queueType) + "." + part }
func (l ladder) level(n int) string      { return l.name(fmt.Sprintf("%02d", n)) }
func (l ladder) entry() string           { return l.level(delayLevels - 1) }
func (l ladder) near() string            { return l.name("near") }

// undelivered keeps what nobody can be given: redeliveries to a group whose queue was deleted.
func (l ladder) undelivered() string { return l.name("undelivered") }

func digitHeader(n int) string { return fmt.Sprintf("%s%02d", headerDelay, n) }

// delayed makes a publishing that reaches the exchange, under its routing key, after the delay. The
// message's headers are the publishing's own to change.
func (l ladder) delayed(o *outgoing, after time.Duration) *outgoing {
	after = min(after, maxDelay)
	h := o.msg.Headers
	h[headerDue] = time.Now().Add(after).UnixMicro()
	h[headerDelayTo] = o.exchange
	units := max(after-delayMargin, 0) / delayUnit
	for n := range delayLevels {
		if units&(1<<n) != 0 {
			h[digitHeader(n)] = true
		}
	}
	if units == 0 {
		h[headerKey] = o.key
		return &outgoing{key: l.near(), msg: o.msg}
	}
	return &outgoing{exchange: l.entry(), key: o.key, msg: o.msg}
}

// arrived takes the delay's headers off a message and says when it is due and where it belongs. One
// that tells no time is due now.
func (l ladder) arrived(d *amqp.Delivery) (o *outgoing, due time.Time) {
	o = &outgoing{key: d.RoutingKey, msg: copyOf(d, "")}
	if key, ok := d.Headers[headerKey].(string); ok {
		o.key = key
	}
	o.exchange, _ = d.Headers[headerDelayTo].(string)
	if micros, ok := d.Headers[headerDue].(int64); ok {
		due = time.UnixMicro(micros)
	}
	delete(o.msg.Headers, headerDue)
	delete(o.msg.Headers, headerKey)
	return o, due
}

// declare makes what is missing. The order matters: a queue or exchange is there before anything
// leads to it, so that no message is ever lost or early.
func (l ladder) declare(ctx context.Context, d *declarer) error {
	d.queue(l.undelivered(), l.args())
	d.queue(l.near(), l.args())
	d.exchange(l.near(), amqp.ExchangeFanout, nil)
	d.bind(l.near(), "", l.near(), nil)
	next := l.near()
	for n := range delayLevels {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.exchange(l.level(n), amqp.ExchangeHeaders, amqp.Table{"alternate-exchange": next})
		args := l.args()
		args["x-dead-letter-exchange"] = next
		args["x-message-ttl"] = int64(delayUnit<<n) / int64(time.Millisecond)
		if l.queueType == Quorum {
			args["x-dead-letter-strategy"] = "at-least-once"
			args["x-overflow"] = "reject-publish" // at-least-once wants it; no length is limited
		}
		d.queue(l.level(n), args)
		d.bind(l.level(n), "", l.level(n), amqp.Table{"x-match": "all", digitHeader(n): true})
		next = l.level(n)
	}
	return d.err
}

func (l ladder) args() amqp.Table {
	args := amqp.Table{"x-queue-type": string(l.queueType)}
	if l.queueType == Quorum {
		args["x-delivery-limit"] = manyDeliveries
	}
	return args
}
