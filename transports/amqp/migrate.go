package amqp

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Before the broker alone moved delays, they ended in the queue leat.delay.<type>.near, and every leat process took messages
// from it, held them for their last seconds and sent them where they belong. What waits in the 20 queues
// leat.delay.<type>.00 to .19 of that layout still comes to "near" by itself, for 48 days at most. This file empties "near"
// when no process of the old version does. Only processes that consume a group do so.
//
// Delete this file, the call of migrate and the doctor's finding oldDelays with the first release that is made 48 days after
// the one that brings it.

const (
	// migrateEvery is how often "near" is looked at, which an old process consumes or nothing comes to.
	migrateEvery = assertInterval
	// nearMargin is how early a message came to "near", at most, and a little more.
	nearMargin = 20 * time.Second
	nearWindow = 100

	oldDelayLevels = 20

	headerDelayTo = "leat-delay-to" // the exchange that a delayed message goes to at its time
	headerDue     = "leat-due"      // when, in microseconds since 1970
	headerKey     = "leat-key"      // its routing key, where it came to "near" by another
)

func oldDelayName(queueType QueueType, part string) string {
	return delayPrefix + string(queueType) + "." + part
}

// migrate begins to look after the old layout, once.
func (t *Transport) migrate() {
	t.migration.Do(func() {
		t.work.Go(func() {
			for {
				for _, queueType := range []QueueType{Quorum, Classic} {
					if err := t.emptyNear(queueType); err != nil && t.ctx.Err() == nil {
						t.cfg.Logger.Warn("leat: amqp: delayed messages of an older version not moved; tried again soon", "error", err)
					}
				}
				if sleep(t.ctx, cmp.Or(t.cfg.migrateEvery, migrateEvery)) != nil {
					return
				}
			}
		})
	})
}

// emptyNear sends what is in "near" on, each message at its time, until there is no more.
func (t *Transport) emptyNear(queueType QueueType) error {
	conn, _, err := t.consuming.connection(t.ctx)
	if err != nil {
		return err
	}
	p := prober{conn: conn}
	defer p.close()
	q, there, err := p.queue(oldDelayName(queueType, "near"))
	if err != nil || !there || q.Messages == 0 || q.Consumers > 0 {
		return err
	}
	return p.do(func(ch *amqp.Channel) error {
		defer context.AfterFunc(t.ctx, func() { closeQuietly(ch) })()
		const size, global = 0, false
		const autoAck, noLocal = false, false
		if err := ch.Qos(nearWindow, size, global); err != nil {
			return err
		}
		arrived, err := ch.Consume(q.Name, byBroker, autoAck, exclusive, noLocal, noWait, nil)
		if err != nil {
			return err
		}
		s := &sieve{p: t.publisher, alone: true} // what the broker has against these messages concerns no others
		defer s.close()
		for {
			window := collect(arrived, nearWindow)
			if len(window) == 0 {
				return nil
			}
			if err := t.sendOld(s, queueType, window); err != nil {
				return err
			}
		}
	})
}

// sendOld sends a window of messages, each at its time.
func (t *Transport) sendOld(s *sieve, queueType QueueType, window []*amqp.Delivery) error {
	slices.SortStableFunc(window, func(a, b *amqp.Delivery) int { return cmp.Compare(oldDue(a), oldDue(b)) })
	for len(window) > 0 {
		wait := min(time.Until(time.UnixMicro(oldDue(window[0]))), nearMargin)
		if err := sleep(t.ctx, wait); err != nil {
			return err
		}
		n := 1
		for n < len(window) && oldDue(window[n]) <= time.Now().UnixMicro() {
			n++
		}
		if err := t.sendDue(s, queueType, window[:n]); err != nil {
			return err
		}
		window = window[n:]
	}
	return nil
}

// sendDue publishes messages and acks them. What the broker refuses, and redeliveries to a queue that is gone, are put
// aside; what this user may not publish goes back, for a process that may.
func (t *Transport) sendDue(s *sieve, queueType QueueType, due []*amqp.Delivery) error {
	out := make([]*outgoing, len(due))
	for i, d := range due {
		out[i] = oldTarget(d)
	}
	if err := s.pass(t.ctx, out); err != nil {
		return err
	}
	for i, o := range out {
		const multiple, requeue = false, true
		switch {
		case isCode(o.refused, amqp.AccessRefused):
			_ = due[i].Nack(multiple, requeue)
			return o.refused
		case o.refused != nil, o.unroutable && o.exchange == "":
			aside := oldDelayName(queueType, "undelivered")
			t.cfg.Logger.Error("leat: amqp: delayed message put aside", "exchange", o.exchange, "key", o.key, "kept_in", aside,
				"message_id", o.msg.MessageId, "error", o.refused)
			o.msg.Headers[headerDelayTo], o.msg.Headers[headerKey] = o.exchange, o.key
			kept := &outgoing{key: aside, msg: o.msg}
			if err := t.publisher.send(t.ctx, []*outgoing{kept}); err != nil {
				return err
			}
			if kept.unroutable {
				return fmt.Errorf("queue %q is not there", aside)
			}
		case o.unroutable:
			t.unroutable.Add(1)
		}
		if err := due[i].Ack(multiple); err != nil {
			return err
		}
	}
	return nil
}

func oldDue(d *amqp.Delivery) int64 {
	micros, _ := d.Headers[headerDue].(int64)
	return micros
}

// oldTarget is the publishing that a delayed message was to become.
func oldTarget(d *amqp.Delivery) *outgoing {
	o := &outgoing{key: d.RoutingKey, msg: copyOf(d, "")}
	if key, ok := d.Headers[headerKey].(string); ok {
		o.key = key
	}
	o.exchange, _ = d.Headers[headerDelayTo].(string)
	for _, name := range []string{headerDelayTo, headerDue, headerKey} {
		delete(o.msg.Headers, name)
	}
	return o
}
