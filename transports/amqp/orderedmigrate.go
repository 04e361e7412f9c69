package amqp

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// Earlier versions used two other queues for an ordered group. A leader consumed the group's queue while it had a token from
// <group>.lead. In <group>.held were delayed and parked messages, and tombstones at the positions of poisoned ones. While there
// may be processes of such a version, a process of this version leads only while it has a token, and takes over the
// messages of <group>.held. It does not declare these queues. They can be deleted when no process of such a version runs.

// Control messages in <group>.held.
const (
	legacyTombstone     = "parked" // at the position of a poisoned message
	legacySkip          = "skip"   // the tombstone at this position is void
	legacyScan          = "scan"   // the end of what a process reads
	legacyCleanShutdown = "peace"  // when its leader stopped, no handler had a message
)

// A legacyGroup is a group of which an earlier version may have left queues.
type legacyGroup struct{ *orderedSession }

// awaitToken waits until no process of an earlier version leads the group, if there may be any.
func (l legacyGroup) awaitToken() error {
	const mandatory = false
	f := l.receiver
	p := prober{conn: l.conn}
	defer p.close()
	name := leadName(f.sub.Group)
	if _, there, err := p.queue(name); err != nil || !there {
		return err
	}
	ch, err := l.conn.Channel()
	if err != nil {
		return err
	}
	l.watch(ch)
	tokens, err := ch.Consume(name, name, autoAck, exclusive, noLocal, noWait, nil)
	if err != nil {
		return err
	}
	err = ch.Publish("", name, mandatory, immediate, amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: ids.New()})
	if err != nil {
		return err
	}
	select {
	case token, ok := <-tokens:
		if !ok {
			return errors.New("the connection was lost")
		}
		l.work.Go(func() { // processes that stand by send tokens; one is kept unacked
			for next := range tokens {
				_ = ch.Ack(token.DeliveryTag, single) // else the session ends
				token = next
			}
		})
		return nil
	case <-f.open.Done():
		return context.Cause(f.open)
	}
}

// A legacyMessage is a message in <group>.held.
type legacyMessage struct {
	legacyPosition
	it        *orderedItem
	tombstone bool
}

// adopt takes over the messages of <group>.held. It is called when the takeover is ready.
func (l legacyGroup) adopt(p *prober) error {
	f := l.receiver
	name := legacyQueueName(f.sub.Group)
	if q, there, err := p.queue(name); err != nil || !there || q.Messages == 0 {
		return err
	}
	if _, err := l.awaitExclusive(p, name); err != nil {
		return err
	}
	const unlimited, alone = 0, true
	c, deliveries, err := l.consume(ordered.Source{Pair: ordered.Adopted}, name, unlimited, alone)
	if err != nil {
		return err
	}
	id := ids.New()
	f.mu.Lock()
	l.passes[c.from] = c
	l.publisher.publish(0, &outgoing{key: name, msg: amqp.Publishing{
		DeliveryMode: amqp.Persistent, MessageId: id, Headers: amqp.Table{headerHeldNote: legacyScan},
	}})
	f.mu.Unlock()
	var all []legacyMessage
	var skips []*amqp.Delivery
	for d := range deliveries {
		it := newOrderedItem(l.orderedSession, c, &d)
		switch control := d.Headers[headerHeldNote]; control {
		case legacyScan, legacyCleanShutdown:
			c.acks.ack(d.DeliveryTag)
			if d.MessageId == id {
				return l.adoptAll(l.sort(all, skips))
			}
		case legacySkip:
			skips = append(skips, &d)
		default:
			at, _ := legacyPositionOf(&d)
			// The broker has counted how often the message was read.
			it.attempts, it.crashes = fieldInt(d.Headers[headerAttempt]), fieldInt(d.Headers[headerCrashes])
			it.key = at.key
			all = append(all, legacyMessage{at, it, control == legacyTombstone})
		}
	}
	return errors.New("the connection was lost")
}

// sort returns the valid messages, sorted by key and position. The others are acked.
func (l legacyGroup) sort(all []legacyMessage, skips []*amqp.Delivery) []legacyMessage {
	slices.SortStableFunc(all, func(a, b legacyMessage) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.at, b.at), cmp.Compare(b.rev, a.rev))
	})
	void := make(map[legacyPosition]bool) // tombstones with a skip
	for _, d := range skips {
		p, _ := legacyPositionOf(d)
		for rev := range p.rev + 1 {
			void[legacyPosition{p.key, p.at, rev}] = true
		}
	}
	valid := all[:0]
	for _, h := range all {
		last := len(valid) - 1
		switch {
		case last >= 0 && valid[last].key == h.key && valid[last].at == h.at, h.tombstone && void[h.legacyPosition]:
			h.it.from.acks.ack(h.it.raw.DeliveryTag)
		default:
			valid = append(valid, h)
		}
	}
	for _, d := range skips { // after their tombstones
		l.passes[ordered.Source{Pair: ordered.Adopted}].acks.ack(d.DeliveryTag)
	}
	return valid
}

func (l legacyGroup) adoptAll(all []legacyMessage) error {
	f := l.receiver
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.over {
		return nil
	}
	msgs := make([]*ordered.Message, len(all))
	for i, h := range all {
		l.tags++
		h.it.tag = l.tags
		l.items[h.it.tag] = h.it
		msg := h.it.message()
		msg.Key = h.key
		if h.tombstone {
			msg.Control, msg.Head = ordered.ControlBlock, legacyName(h.at)
		} else if micros, ok := h.it.raw.Headers[headerHeldUntil].(int64); ok {
			msg.Due = time.UnixMicro(micros)
		}
		msgs[i] = msg
	}
	l.election.takeover.Adopt(msgs)
	if len(msgs) > 0 {
		f.t.cfg.Logger.Info("leat: amqp: messages of an earlier version taken over", "group", f.sub.Group, "count", len(msgs))
	}
	return nil
}
