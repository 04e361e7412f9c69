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

// The version before kept ordered groups with two other queues. Its leader had a token from <group>.lead, and consumed
// the group's queue only then; in <group>.held were delayed and parked messages, and stones in the places of poisoned
// ones. A process of this version leads beside those only while it has a token, and takes over what is held. Neither
// queue is made any more. When no process of the version before runs, they can be deleted.

// Notes in <group>.held that were no messages.
const (
	noteStone = "parked" // in the place of a poisoned message
	noteSkip  = "skip"   // the stone in this place is void
	noteScan  = "scan"   // somebody reads up to here
	notePeace = "peace"  // no held message was handed out when its leader stopped
)

// awaitToken waits until no process of the version before leads the group, if there may be any.
func (s *orderedSession) awaitToken() error {
	const autoAck, noLocal, multiple, mandatory, immediate = false, false, false, false, false
	f := s.feed
	p := prober{conn: s.conn}
	defer p.close()
	name := leadName(f.sub.Group)
	if _, there, err := p.queue(name); err != nil || !there {
		return err
	}
	ch, err := s.conn.Channel()
	if err != nil {
		return err
	}
	s.watch(ch)
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
		s.work.Go(func() { // who stands by sends tokens; one is kept
			for next := range tokens {
				_ = ch.Ack(token.DeliveryTag, multiple) // else the session ends
				token = next
			}
		})
		return nil
	case <-f.open.Done():
		return context.Cause(f.open)
	}
}

// heldMessage is a message that the version before has held.
type heldMessage struct {
	place
	it    *orderedItem
	stone bool
}

// adopt takes over what the version before has held. It is called when the takeover is ready.
func (s *orderedSession) adopt(p *prober) error {
	f := s.feed
	name := heldName(f.sub.Group)
	if q, there, err := p.queue(name); err != nil || !there || q.Messages == 0 {
		return err
	}
	if _, err := s.awaitAlone(p, name); err != nil {
		return err
	}
	const unlimited, alone = 0, true
	c, deliveries, err := s.consume(ordered.Source{Pair: ordered.Adopted}, name, unlimited, alone)
	if err != nil {
		return err
	}
	id := ids.New()
	f.mu.Lock()
	s.passes[c.from] = c
	s.publish(0, &outgoing{key: name, msg: amqp.Publishing{
		DeliveryMode: amqp.Persistent, MessageId: id, Headers: amqp.Table{headerHeldNote: noteScan},
	}})
	f.mu.Unlock()
	var all []heldMessage
	var skips []*amqp.Delivery
	for d := range deliveries {
		it := newOrderedItem(s, c, &d)
		switch note := d.Headers[headerHeldNote]; note {
		case noteScan, notePeace:
			c.acks.ack(d.DeliveryTag)
			if d.MessageId == id {
				return s.adoptAll(s.sortHeld(all, skips))
			}
		case noteSkip:
			skips = append(skips, &d)
		default:
			at, _ := placeOf(&d)
			// The broker has counted how often the message was looked at.
			it.attempts, it.crashes = fieldInt(d.Headers[headerAttempt]), fieldInt(d.Headers[headerCrashes])
			it.key = at.key
			all = append(all, heldMessage{at, it, note == noteStone})
		}
	}
	return errors.New("the connection was lost")
}

// sortHeld returns what is valid, in the order of the keys. The rest is acked.
func (s *orderedSession) sortHeld(all []heldMessage, skips []*amqp.Delivery) []heldMessage {
	slices.SortStableFunc(all, func(a, b heldMessage) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.at, b.at), cmp.Compare(b.rev, a.rev))
	})
	void := make(map[place]bool) // stones with a skip
	for _, d := range skips {
		p, _ := placeOf(d)
		for rev := range p.rev + 1 {
			void[place{p.key, p.at, rev}] = true
		}
	}
	valid := all[:0]
	for _, h := range all {
		last := len(valid) - 1
		switch {
		case last >= 0 && valid[last].key == h.key && valid[last].at == h.at, h.stone && void[h.place]:
			h.it.from.acks.ack(h.it.raw.DeliveryTag)
		default:
			valid = append(valid, h)
		}
	}
	for _, d := range skips { // after their stones
		s.passes[ordered.Source{Pair: ordered.Adopted}].acks.ack(d.DeliveryTag)
	}
	return valid
}

func (s *orderedSession) adoptAll(all []heldMessage) error {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.over {
		return nil
	}
	msgs := make([]*ordered.Message, len(all))
	for i, h := range all {
		s.tags++
		h.it.tag = s.tags
		s.items[h.it.tag] = h.it
		msg := h.it.message()
		msg.Key = h.key
		if original, ok := h.it.raw.Headers[headerHeldPrint].(int64); ok {
			msg.Print = uint64(original) //nolint:gosec // it was one
		}
		if h.stone {
			msg.Control, msg.Head = ordered.ControlBlock, placeName(h.at)
		} else if micros, ok := h.it.raw.Headers[headerHeldUntil].(int64); ok {
			msg.Due = time.UnixMicro(micros)
		}
		msgs[i] = msg
	}
	s.takeover.Adopt(msgs)
	if len(msgs) > 0 {
		f.t.cfg.Logger.Info("leat: amqp: messages that an earlier version held are taken over", "group", f.sub.Group, "count", len(msgs))
	}
	return nil
}
