package amqp

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// The broker moves delayed messages without a plugin: a message waits in a queue with a time to live and without consumers, and
// is dead-lettered when its time has passed. Only the head of a queue expires, so all messages of one queue
// have the same time to live. There are two kinds of such queues.
//
// A group has one for each delay of its retry policy, <group>.retry.30s, dead-lettered through the default exchange to
// the group's queue. One of a second is always there.
//
// Any other delay is a number of seconds in binary, and passes one queue for each digit that is set:
//
//	exchange "in" ─1─► queue 21 (2^21 s) ─expired─┐
//	   │0                                         ▼
//	   └────────────────────────────────────► exchange 20 ─ … ─► exchange 00 ─ … ─► exchange "out"
//
// Digits are headers. A headers exchange routes a message whose digit is set to its queue, and any other message to the next
// exchange, which is its alternate exchange. The routing key does not change. There are two sets of such levels, because the
// messages of the first are not trusted and those of the second are (see trust.go):
//
//   - publish: from its "in", to which producers publish, to the events exchange. There is one set for each events exchange.
//   - redeliver: from its "in", to which consumers publish, to <queue>.retry.1s of the queue that the routing key names. So a
//     message comes to the group's queue from a queue of the group, through the default exchange. There is one set for each
//     virtual host.
//
// These rules make sure that no service delays another:
//
//  1. A quorum queue dead-letters at least once: a message leaves the queue when the next queue has confirmed it. At most 32
//     messages of a queue wait for that. So each shared queue leads to queues that always accept messages: to leat's own, or
//     to an exchange "out" with a queue for messages that no other queue accepts.
//  2. Only a group's own queues lead to the group's queue. If it was deleted, or refuses messages, the messages wait there.
//  3. A queue with a time to live never has x-expires: without consumers it counts as unused while it is full.
//
// Classic queues dead-letter at most once: a message that is due when the broker crashes, or whose queue was deleted, may be
// lost.
const (
	delayUnit   = time.Second
	delayLevels = 22

	// maxDelay is the longest delay that the digits can represent: 48 days.
	maxDelay = delayUnit * (1<<delayLevels - 1)

	delayPrefix = "leat.delay."
	retryInfix  = ".retry."

	// delayAssertInterval is the interval at which a process declares the levels again.
	delayAssertInterval = 5 * time.Minute

	// maxRetryQueues is how many delays of a policy have a queue. The others go through the levels.
	maxRetryQueues = 16
)

// units returns a delay in units, rounded up, so that no message is early.
func units(after time.Duration) uint64 {
	after = min(max(after, 0), maxDelay)
	return uint64((after + delayUnit - 1) / delayUnit)
}

func digitHeader(n int) string { return fmt.Sprintf("%s%02d", headerDelay, n) }

// levels has the names of one set of exchanges and queues for delays that have no queue of their own.
type levels struct {
	queueType QueueType // in the names, since a queue can't change its type
	direction string
	exchange  string // the events exchange; "" where each topic has its own, and for redeliveries
}

const (
	toExchange = "publish"
	toGroup    = "redeliver"
)

// publishing returns the levels for messages that are published with a delay.
func (t *topology) publishing() levels {
	l := levels{queueType: t.cfg.QueueType, direction: toExchange}
	if !t.watermill() {
		l.exchange = t.cfg.ExchangeName
	}
	return l
}

// redelivering returns the levels for redeliveries.
func (t *topology) redelivering() levels {
	return levels{queueType: t.cfg.QueueType, direction: toGroup}
}

func (l levels) name(part string) string {
	name := delayPrefix + string(l.queueType) + "." + l.direction + "." + part
	if l.exchange != "" {
		name += "." + l.exchange
	}
	return name
}

func (l levels) queue(n int) string { return l.name(fmt.Sprintf("%02d", n)) }

// exchangeOf returns the exchange that routes by digit n.
func (l levels) exchangeOf(n int) string {
	switch n {
	case delayLevels - 1:
		return l.entrance()
	case -1:
		return l.exit()
	}
	return l.queue(n)
}

func (l levels) entrance() string { return l.name("in") }
func (l levels) exit() string     { return l.name("out") }

// unwanted returns the queue that accepts everything and drops it: messages that no group has subscribed to must not block others.
func (l levels) unwanted() string { return l.name("unwanted") }

// topics returns the exchange that leads to the exchanges of topics that have their own.
func (l levels) topics() string { return l.name("topics") }

// undelivered returns the queue for redeliveries to a group whose queues were deleted.
func (l levels) undelivered() string { return delayPrefix + string(l.queueType) + ".undelivered" }

// delayed returns a publishing that reaches the exit exchange with the routing key after n units. It changes the headers of msg.
func (l levels) delayed(key string, n uint64, msg amqp.Publishing) *outgoing {
	for digit := range delayLevels {
		if n&(1<<digit) != 0 {
			msg.Headers[digitHeader(digit)] = true
		}
	}
	return &outgoing{exchange: l.entrance(), key: key, msg: msg}
}

// room returns how many bytes the broker writes at most beside a message's headers on the way: x-death has an entry for each
// queue.
func (l levels) room(key string, n uint64) int {
	return brokersRoom + (bits.OnesCount64(n)+1)*(2*len(l.queue(0))+2*len(key)+deathOverhead)
}

// deathOverhead is what an entry of x-death takes beside names.
const deathOverhead = 160

// declare declares what is missing. A queue or exchange is declared before anything leads to it, so that no message is lost or
// early. With declare=false it only looks for the entrance; see declareExit.
func (l levels) declare(ctx context.Context, d *declarer) error {
	if d.passive {
		d.exchange(l.entrance(), amqp.ExchangeHeaders, nil)
		return d.err
	}
	l.declareExit(d)
	for n := range delayLevels {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		next := l.exchangeOf(n - 1)
		d.exchange(l.exchangeOf(n), amqp.ExchangeHeaders, amqp.Table{"alternate-exchange": next})
		d.queue(l.queue(n), delayArgs(l.queueType, delayUnit<<n, next))
		d.bind(l.queue(n), "", l.exchangeOf(n), amqp.Table{"x-match": "all", digitHeader(n): true})
	}
	return d.err
}

// declareExit declares what is behind the levels. With declare=false it does nothing: services need no right to it, and RabbitMQ 4.3
// shows nobody whether it exists without one.
func (l levels) declareExit(d *declarer) {
	if d.passive {
		return
	}
	if l.direction == toGroup {
		d.queue(l.undelivered(), plainArgs(l.queueType))
		d.exchange(l.undelivered(), amqp.ExchangeFanout, nil)
		d.bind(l.undelivered(), "", l.undelivered(), nil)
		d.exchange(l.exit(), amqp.ExchangeDirect, amqp.Table{"alternate-exchange": l.undelivered()})
		return
	}
	args := plainArgs(l.queueType)
	args["x-max-length"] = int64(0)
	d.queue(l.unwanted(), args)
	d.exchange(l.exit(), amqp.ExchangeFanout, nil)
	d.bind(l.unwanted(), "", l.exit(), nil)
	events := l.exchange
	if events == "" {
		events = l.topics()
		d.exchange(events, amqp.ExchangeDirect, nil)
	}
	d.bindExchange(events, "", l.exit())
}

// delayArgs returns the arguments of a queue whose messages are dead-lettered to the exchange after a time.
func delayArgs(queueType QueueType, ttl time.Duration, exchange string) amqp.Table {
	args := plainArgs(queueType)
	args["x-message-ttl"] = ttl.Milliseconds()
	args["x-dead-letter-exchange"] = exchange
	if queueType == Quorum {
		args["x-dead-letter-strategy"] = "at-least-once"
		args["x-overflow"] = "reject-publish" // required by at-least-once; the length has no limit
	}
	return args
}

// plainArgs returns the arguments that all queues of leat have. The type is set for classic queues too, because a virtual host
// may have another default.
func plainArgs(queueType QueueType) amqp.Table {
	args := amqp.Table{"x-queue-type": string(queueType)}
	if queueType == Quorum {
		args["x-delivery-limit"] = manyDeliveries
	}
	return args
}

// retryName returns the queue from which messages move to a group's queue after a delay.
func retryName(queue string, delay time.Duration) string {
	return queue + retryInfix + delayText(delay)
}

// delayText formats a delay as [time.Duration] does, but 5m in place of 5m0s.
func delayText(delay time.Duration) string {
	text := delay.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// delayOf returns the delay in the name of a group's queue for a delay; ok is false for other names.
func delayOf(name string) (delay time.Duration, ok bool) {
	i := strings.LastIndex(name, retryInfix)
	if i < 0 {
		return 0, false
	}
	delay, err := time.ParseDuration(name[i+len(retryInfix):])
	return delay, err == nil
}

func isRetryName(name string) bool {
	_, ok := delayOf(name)
	return ok
}

// retryArgs returns the arguments of the queue from which messages move to a group's queue after a delay.
func retryArgs(queueType QueueType, delay time.Duration, queue string) amqp.Table {
	args := delayArgs(queueType, delay, "")
	args["x-dead-letter-routing-key"] = queue
	return args
}

// retryDelays returns the delays for which a group has queues, in order.
func (t *topology) retryDelays(s driver.Subscription) []time.Duration {
	delays := []time.Duration{delayUnit}
	if t.watermill() {
		return delays // the queue of each topic would need all of them
	}
	for _, delay := range s.Delays {
		if delay > delayUnit && delay <= maxDelay && delay%time.Millisecond == 0 && len(delays) < maxRetryQueues {
			delays = append(delays, delay)
		}
	}
	slices.Sort(delays)
	return slices.Compact(delays)
}

// declareRetries declares the queues of a group for its delays.
func (t *topology) declareRetries(d *declarer, s driver.Subscription) {
	l := t.redelivering()
	l.declareExit(d)
	for _, queue := range t.queues(s) {
		for _, delay := range t.retryDelays(s) {
			d.queue(retryName(queue, delay), retryArgs(t.cfg.QueueType, delay, queue))
		}
		d.bind(retryName(queue, delayUnit), queue, l.exit(), nil)
	}
}

// redelivery returns a publishing that reaches one of the group's queues after the delay.
func (t *topology) redelivery(s driver.Subscription, queue string, after time.Duration, msg amqp.Publishing) (o *outgoing, room int) {
	l := t.redelivering()
	if slices.Contains(t.retryDelays(s), after) {
		return &outgoing{key: retryName(queue, after), msg: msg}, l.room(queue, 0)
	}
	rest := max(units(after), 1) - 1
	if rest == 0 {
		return &outgoing{key: retryName(queue, delayUnit), msg: msg}, l.room(queue, 0)
	}
	return l.delayed(queue, rest, msg), l.room(queue, rest)
}
