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

// The broker alone moves delayed messages, and no plugin is needed: a message waits in a queue with a time to live and
// without consumers, and is dead-lettered at its time. Only the head of a queue expires, so all messages of one queue
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
// Digits are headers. A headers exchange routes a message whose digit is set to its queue, and any other, as the
// alternate exchange says, to the next exchange. The routing key stays as it was. There are two ways through such
// levels, because messages of the one have to be believed less than those of the other (see trust.go):
//
//   - publish: from its "in", for everybody who publishes, to the events exchange. One for each events exchange.
//   - redeliver: from its "in", for consumers, to the queue of a second of the group whose queue is the routing key. So
//     the last step is the group's own, and through the default exchange. One for each virtual host.
//
// These hold, so that no service holds up another:
//
//  1. A quorum queue dead-letters at least once: a message leaves a queue when the next one has confirmed it. The queue
//     goes on with the next 32 messages while it waits for that, and no further. So each shared queue leads to where
//     messages are always taken: to queues of leat, or to an exchange "out" that has one for what is not wanted.
//  2. Only a group's own queues lead to the group's queue. If that was deleted, or refuses messages, they wait there.
//  3. A queue with a time to live never has x-expires: without consumers it counts as unused while it is full.
//
// Classic queues dead-letter at most once: what is due in the moment in which the broker crashes, or for a queue that
// was deleted, may be lost.
const (
	delayUnit   = time.Second
	delayLevels = 22

	// maxDelay is what the digits hold: 48 days.
	maxDelay = delayUnit * (1<<delayLevels - 1)

	delayPrefix = "leat.delay."
	retryInfix  = ".retry."

	// delayAssertInterval is how often a process makes sure that the levels are there.
	delayAssertInterval = 5 * time.Minute

	// maxRetryQueues is how many delays of a policy have a queue. The others go through the levels.
	maxRetryQueues = 16
)

// units is a delay in units, rounded up: nothing is early.
func units(after time.Duration) uint64 {
	after = min(max(after, 0), maxDelay)
	return uint64((after + delayUnit - 1) / delayUnit)
}

func digitHeader(n int) string { return fmt.Sprintf("%s%02d", headerDelay, n) }

// levels are one way through the delays that have no queue of their own.
type levels struct {
	queueType QueueType // in the names, since a queue can't change its type
	way       string
	exchange  string // the events exchange; "" where each topic has its own, and for redeliveries
}

const (
	wayPublish   = "publish"
	wayRedeliver = "redeliver"
)

// publishing are the levels for messages that are published with a delay.
func (t *topology) publishing() levels {
	l := levels{queueType: t.cfg.QueueType, way: wayPublish}
	if !t.watermill() {
		l.exchange = t.cfg.ExchangeName
	}
	return l
}

// redelivering are the levels for redeliveries.
func (t *topology) redelivering() levels {
	return levels{queueType: t.cfg.QueueType, way: wayRedeliver}
}

func (l levels) name(part string) string {
	name := delayPrefix + string(l.queueType) + "." + l.way + "." + part
	if l.exchange != "" {
		name += "." + l.exchange
	}
	return name
}

func (l levels) queue(n int) string { return l.name(fmt.Sprintf("%02d", n)) }

// exchangeOf is the exchange that looks at digit n.
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

// unwanted is the queue that takes everything and keeps nothing. What no group wants is gone, and holds nothing up.
func (l levels) unwanted() string { return l.name("unwanted") }

// topics is the exchange that leads to the exchanges of topics that have their own.
func (l levels) topics() string { return l.name("topics") }

// undelivered keeps what nobody can be given: redeliveries to a group whose queues were deleted.
func (l levels) undelivered() string { return delayPrefix + string(l.queueType) + ".undelivered" }

// delayed makes a publishing that has the routing key at the exit after so many units. The message's headers are the
// publishing's own to change.
func (l levels) delayed(key string, n uint64, msg amqp.Publishing) *outgoing {
	for digit := range delayLevels {
		if n&(1<<digit) != 0 {
			msg.Headers[digitHeader(digit)] = true
		}
	}
	return &outgoing{exchange: l.entrance(), key: key, msg: msg}
}

// room is how many bytes the broker writes at most beside a message's headers on the way: x-death has an entry for each
// queue.
func (l levels) room(key string, n uint64) int {
	return brokersRoom + (bits.OnesCount64(n)+1)*(2*len(l.queue(0))+2*len(key)+deathOverhead)
}

// deathOverhead is what an entry of x-death takes beside names.
const deathOverhead = 160

// declare makes what is missing. The order matters: a queue or exchange is there before anything leads to it, so that
// no message is ever lost or early.
func (l levels) declare(ctx context.Context, d *declarer) error {
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

func (l levels) declareExit(d *declarer) {
	if l.way == wayRedeliver {
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

// delayArgs are those of a queue whose messages go to the exchange after a time.
func delayArgs(queueType QueueType, ttl time.Duration, exchange string) amqp.Table {
	args := plainArgs(queueType)
	args["x-message-ttl"] = ttl.Milliseconds()
	args["x-dead-letter-exchange"] = exchange
	if queueType == Quorum {
		args["x-dead-letter-strategy"] = "at-least-once"
		args["x-overflow"] = "reject-publish" // at-least-once wants it; no length is limited
	}
	return args
}

// plainArgs are those of every queue that leat has to itself. Classic is said too: a virtual host may
// have another default.
func plainArgs(queueType QueueType) amqp.Table {
	args := amqp.Table{"x-queue-type": string(queueType)}
	if queueType == Quorum {
		args["x-delivery-limit"] = manyDeliveries
	}
	return args
}

// retryName is the queue by which messages come to a group's queue after a delay.
func retryName(queue string, delay time.Duration) string {
	return queue + retryInfix + delayText(delay)
}

// delayText is 5m where [time.Duration] says 5m0s.
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

// isRetryName reports whether a queue has such a name.
func isRetryName(name string) bool {
	i := strings.LastIndex(name, retryInfix)
	if i < 0 {
		return false
	}
	_, err := time.ParseDuration(name[i+len(retryInfix):])
	return err == nil
}

// retryDelays are the delays for which a group has queues, in order.
func (t *topology) retryDelays(s driver.Subscription) []time.Duration {
	delays := []time.Duration{delayUnit}
	if t.watermill() {
		return delays // else each topic's queue would have all of them
	}
	for _, delay := range s.Delays {
		if delay > delayUnit && delay <= maxDelay && delay%time.Millisecond == 0 && len(delays) < maxRetryQueues {
			delays = append(delays, delay)
		}
	}
	slices.Sort(delays)
	return slices.Compact(delays)
}

// declareRetries makes the queues of a group for its delays.
func (t *topology) declareRetries(d *declarer, s driver.Subscription) {
	delays := t.retryDelays(s)
	if len(delays) == 0 {
		return
	}
	l := t.redelivering()
	l.declareExit(d)
	for _, queue := range t.queues(s) {
		for _, delay := range delays {
			args := delayArgs(t.cfg.QueueType, delay, "")
			args["x-dead-letter-routing-key"] = queue
			d.queue(retryName(queue, delay), args)
		}
		d.bind(retryName(queue, delayUnit), queue, l.exit(), nil)
	}
}

// redelivery makes a publishing that is in one of the group's queues after the delay.
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
