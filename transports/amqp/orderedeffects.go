package amqp

import (
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// carryOut does what the takeover or the machine wants, in order. The caller holds the feed's mu.
func (s *orderedSession) carryOut() {
	if s.over {
		return
	}
	s.carryOutEffects()
	s.checkStopped()
	if !s.over {
		s.arm(time.Now())
	}
}

func (s *orderedSession) carryOutEffects() {
	for effects := s.effects(); len(effects) > 0; effects = s.effects() {
		for _, e := range effects {
			s.do(e)
		}
	}
	if s.log != nil && s.takeover != nil && s.takeover.Ready() && !s.log.ready {
		s.log.ready = true
		s.work.Go(s.lead)
	}
}

func (s *orderedSession) effects() []ordered.Effect {
	switch {
	case s.machine != nil:
		return s.machine.Effects()
	case s.takeover != nil:
		return s.takeover.Effects()
	}
	return nil
}

func (s *orderedSession) do(e ordered.Effect) {
	f := s.feed
	switch e := e.(type) {
	case ordered.Deliver:
		it := s.items[e.Tag]
		first := !it.from.begun
		it.from.begun = true
		if s.judge(it, first) {
			s.machine.Failed(time.Now(), e.Tag, shortWait+time.Millisecond)
			return
		}
		it.fence = e.Fence
		f.ready = append(f.ready, it)
	case ordered.Ack:
		s.ack(e.Tag)
	case ordered.Copy:
		s.copy(e)
	case ordered.Send:
		queue := f.queue
		if e.To.Pair > 0 {
			queue = parkedName(f.sub.Group, e.To)
		}
		s.publish(e.Op, controlMessage(queue, e.Control, e.Head, "", e.Name))
	case ordered.Write:
		s.publish(e.Op, &outgoing{key: keysName(f.sub.Group), msg: amqp.Publishing{
			ContentType: "application/json", MessageId: ids.New(), DeliveryMode: amqp.Persistent, Headers: amqp.Table{}, Body: e.Record.Encode(),
		}})
	case ordered.Return:
		s.giveBack(e.Tag)
	case ordered.StartPass:
		s.work.Go(func() { s.startPass(ordered.Source(e)) })
	case ordered.EndPass:
		s.endPass(ordered.Source(e))
	case ordered.Renew:
		s.why = errRenew
		s.stop()
	case ordered.StepDown:
		s.fail(fmt.Errorf("this process does not lead the group any more: %s", e.Reason))
	case ordered.Report:
		f.report(e.Full)
	}
}

// ack acks a delivery. Its copy, if it was poisoned, is safe then.
func (s *orderedSession) ack(tag ordered.Tag) {
	it := s.items[tag]
	if it == nil {
		return
	}
	delete(s.items, tag)
	it.from.acks.ack(it.raw.DeliveryTag)
	if it.crashes > 0 {
		it.from.acks.hurry() // before the next can crash the process
	}
	if it.copied != nil {
		it.copied <- nil
		it.copied = nil
	}
}

// errUnknownParked is the fault of a message in a parked queue that no leader has put there.
var errUnknownParked = errors.New("amqp: the message was in a queue for parked messages, and leat has not put it there")

// copy publishes a copy of a delivery.
func (s *orderedSession) copy(e ordered.Copy) {
	f, it := s.feed, s.items[e.Tag]
	if it == nil {
		s.fail(fmt.Errorf("no message has the tag %d", e.Tag))
		return
	}
	s.judge(it, false)
	frame := s.conn.Config.FrameSize
	if frame <= 0 {
		frame = frameMax
	}
	var o *outgoing
	switch e.To {
	case ordered.ToPoison:
		if it.fault.Text == "" && it.fault.Err == nil {
			it.fault = driver.NewFault(it.handOut(), errUnknownParked)
		}
		o = it.poisoned(it.fault, f.queue, frame)
		setCopyHeaders(o.msg.Headers, e)
	case ordered.ToDelay, ordered.ToParked:
		msg, room := it.copy(it.attempts), brokersRoom
		setCopyHeaders(msg.Headers, e)
		if e.To == ordered.ToDelay {
			o, room = f.t.topology.redelivery(f.sub, f.queue, e.After, msg)
		} else {
			o = &outgoing{key: parkedName(f.sub.Group, ordered.Source{Pair: e.Pair, Side: e.Side}), msg: msg}
		}
		fit(&o.msg, frame-room)
	}
	s.publish(e.Op, o)
}

// publish publishes over the session's channel. Op is 0 if nobody waits for the confirmation.
func (s *orderedSession) publish(op uint64, o *outgoing) {
	const mandatory, immediate = true, false
	s.ops = append(s.ops, op)
	if err := s.publisher.Publish(o.exchange, o.key, mandatory, immediate, o.msg); err != nil {
		s.fail(fmt.Errorf("publish to %q: %w", o.key, err))
	}
}

// confirmations are those of the broker, in the order of publishing.
type confirmations struct {
	mu    sync.Mutex
	count int // of what is confirmed, and not passed on yet
	err   error
	more  chan struct{}
}

func (c *confirmations) add(n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count += n
	if c.err == nil {
		c.err = err
	}
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *confirmations) take() (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, c.count = c.count, 0
	return n, c.err
}

// confirm puts the channel for publishing into confirm mode. The client library waits for whoever listens, and may not be
// made to wait for the feed's mu; so one goroutine listens, and another passes on.
func (s *orderedSession) confirm() error {
	confirmed, returned := s.publisher.NotifyPublish(make(chan amqp.Confirmation, maxConfirms)), s.publisher.NotifyReturn(make(chan amqp.Return))
	s.watch(s.publisher)
	s.work.Go(func() {
		defer close(s.confirms.more)
		for confirmed != nil || returned != nil {
			select {
			case c, ok := <-confirmed:
				switch {
				case !ok:
					confirmed = nil
				case !c.Ack:
					s.confirms.add(0, errRefused)
				default:
					s.confirms.add(1, nil)
				}
			case r, ok := <-returned: // before its confirmation
				if !ok {
					returned = nil
					continue
				}
				s.confirms.add(0, &missingQueueError{r.RoutingKey})
			}
		}
	})
	s.work.Go(func() {
		for range s.confirms.more {
			n, err := s.confirms.take()
			if err != nil {
				s.fail(err)
				return
			}
			s.confirmed(n)
		}
	})
	return s.publisher.Confirm(noWait)
}

// confirmed passes n confirmations on.
func (s *orderedSession) confirmed(n int) {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	var op uint64
	for _, confirmed := range s.ops[:n] {
		op = max(op, confirmed)
	}
	s.ops = s.ops[n:]
	switch {
	case s.over || op == 0:
		return
	case s.machine != nil:
		s.machine.Confirmed(time.Now(), op)
	case s.takeover != nil:
		s.takeover.Confirmed(op)
	}
	f.act()
}

// missingQueueError says that a queue of the group was deleted.
type missingQueueError struct{ queue string }

func (e *missingQueueError) Error() string { return fmt.Sprintf("queue %q is not there", e.queue) }

// isMissing reports whether something that was declared is gone.
func isMissing(err error) bool {
	_, returned := errors.AsType[*missingQueueError](err)
	return returned || isCode(err, amqp.NotFound)
}

// report logs that the group has reached its limit of keys, or is below it again.
func (f *orderedFeed) report(full bool) {
	if full {
		f.t.cfg.Logger.Error("leat: amqp: too many keys of the group wait; no further key can be delayed or parked, and the group stops consuming",
			"group", f.sub.Group, "keys", f.config.MaxKeys)
		return
	}
	f.t.cfg.Logger.Info("leat: amqp: keys of the group may wait again", "group", f.sub.Group)
}

// giveBack returns a delivery to the group's queue.
func (s *orderedSession) giveBack(tag ordered.Tag) {
	it := s.items[tag]
	if it == nil {
		return
	}
	delete(s.items, tag)
	s.feed.unseen.add(&it.received)
	it.from.acks.requeue(it.raw.DeliveryTag)
}
