package amqp

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// In earlier versions, delays ended in the queue leat.delay.<type>.near. Every leat process consumed it, kept messages for their
// last seconds and published them to their destination. The broker still moves messages from the 20 queues leat.delay.<type>.00
// to .19 of that layout to "near", for 48 days at most. This file empties "near" when no process of an earlier version consumes
// it. Only processes that consume a group do so.
//
// Delete this file, the call of migrate and the doctor's finding oldDelays with the first release that is made 48 days after
// the one that brings it.

const (
	// migrateEvery is the interval at which "near" is checked.
	migrateEvery = assertInterval
	// nearMargin is longer than a message waits in "near".
	nearMargin = 20 * time.Second
	nearWindow = 100

	oldDelayLevels = 20

	headerDelayTo = "leat-delay-to" // the exchange to which the message is published when its delay ends
	headerDue     = "leat-due"      // when, in microseconds since 1970
	headerKey     = "leat-key"      // its routing key, if it was moved to "near" by another one
)

func oldDelayName(queueType QueueType, part string) string {
	return delayPrefix + string(queueType) + "." + part
}

// A migration empties "near" of one type of queues.
type migration struct {
	ctx       context.Context
	queueType QueueType
	consuming *link
	publisher *publisher
}

// migrate begins to empty the queues of the old layout.
func migrate(life *lifetime, consuming *link, p *publisher) {
	for _, queueType := range []QueueType{Quorum, Classic} {
		m := &migration{ctx: life.ctx, queueType: queueType, consuming: consuming, publisher: p}
		life.work.Go(m.run)
	}
}

// run empties the queue again and again until ctx is done.
func (m *migration) run() {
	cfg := &m.consuming.cfg
	for {
		if err := m.empty(); err != nil && m.ctx.Err() == nil {
			cfg.Logger.Warn("leat: amqp: delayed messages of an earlier version not moved; will be tried again", "error", err)
		}
		if sleep(m.ctx, cmp.Or(cfg.migrateEvery, migrateEvery)) != nil {
			return
		}
	}
}

// empty publishes each message of the queue when it is due, until the queue is empty.
func (m *migration) empty() error {
	conn, _, err := m.consuming.connection(m.ctx)
	if err != nil {
		return err
	}
	p := prober{conn: conn}
	defer p.close()
	q, there, err := p.peek(oldDelayName(m.queueType, "near"))
	if err != nil || !there || q.Messages == 0 || q.Consumers > 0 {
		return err
	}
	return p.do(func(ch *amqp.Channel) error {
		defer context.AfterFunc(m.ctx, func() { closeQuietly(ch) })()
		arrived, err := consume(ch, q.Name, byBroker, nearWindow, exclusive, nil)
		if err != nil {
			return err
		}
		s := &refusedFinder{p: m.publisher, ownConnection: true} // if the broker refuses a message, others are not affected
		defer s.close()
		for {
			window := collect(arrived, nearWindow)
			if len(window) == 0 {
				return nil
			}
			if err := m.sendOld(s, window); err != nil {
				return err
			}
		}
	})
}

// sendOld publishes a window of messages, each when it is due.
func (m *migration) sendOld(s *refusedFinder, window []*amqp.Delivery) error {
	slices.SortStableFunc(window, func(a, b *amqp.Delivery) int { return cmp.Compare(oldDue(a), oldDue(b)) })
	for len(window) > 0 {
		wait := min(time.Until(time.UnixMicro(oldDue(window[0]))), nearMargin)
		if err := sleep(m.ctx, wait); err != nil {
			return err
		}
		n := 1
		for n < len(window) && oldDue(window[n]) <= time.Now().UnixMicro() {
			n++
		}
		if err := m.sendDue(s, window[:n]); err != nil {
			return err
		}
		window = window[n:]
	}
	return nil
}

// sendDue publishes messages and acks them. Messages that the broker refuses, and redeliveries to a queue that does not exist, are
// moved to another queue. Messages that this user may not publish are requeued for a process that may.
func (m *migration) sendDue(s *refusedFinder, due []*amqp.Delivery) error {
	out := make([]*outgoing, len(due))
	for i, d := range due {
		out[i] = oldTarget(d)
	}
	if err := s.pass(m.ctx, out); err != nil {
		return err
	}
	for i, o := range out {
		const requeue = true
		switch {
		case isCode(o.refused, amqp.AccessRefused):
			_ = due[i].Nack(single, requeue)
			return o.refused
		case o.refused != nil, o.unroutable && o.exchange == "":
			aside := oldDelayName(m.queueType, "undelivered")
			m.consuming.cfg.Logger.Error("leat: amqp: delayed message refused; kept in a queue", "exchange", o.exchange, "key", o.key, "kept_in", aside,
				"message_id", o.msg.MessageId, "error", o.refused)
			o.msg.Headers[headerDelayTo], o.msg.Headers[headerKey] = o.exchange, o.key
			kept := &outgoing{key: aside, msg: o.msg}
			if err := m.publisher.send(m.ctx, []*outgoing{kept}); err != nil {
				return err
			}
			if kept.unroutable {
				return fmt.Errorf("queue %q does not exist", aside)
			}
		case o.unroutable:
			m.publisher.unroutable.Add(1)
		}
		if err := due[i].Ack(single); err != nil {
			return err
		}
	}
	return nil
}

func oldDue(d *amqp.Delivery) int64 {
	micros, _ := d.Headers[headerDue].(int64)
	return micros
}

// oldTarget returns the publishing for a message whose delay has ended.
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
