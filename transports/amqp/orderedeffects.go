package amqp

import (
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// carryOut executes the effects of the takeover or the machine, in order.
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
	s.election.leadIfReady()
}

func (s *orderedSession) effects() []ordered.Effect {
	switch {
	case s.machine != nil:
		return s.machine.Effects()
	case s.election.takeover != nil:
		return s.election.takeover.Effects()
	}
	return nil
}

func (s *orderedSession) do(e ordered.Effect) {
	f := s.receiver
	switch e := e.(type) {
	case ordered.Deliver:
		it := s.items[e.Tag]
		first := !it.from.begun
		it.from.begun = true
		if s.countDelivery(it, first) {
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
		s.publisher.publish(e.Op, controlMessage(queue, e.Control, e.Head, "", e.Name))
	case ordered.Write:
		s.publisher.publish(e.Op, &outgoing{key: keysName(f.sub.Group), msg: amqp.Publishing{
			ContentType: "application/json", MessageId: ids.New(), DeliveryMode: amqp.Persistent, Headers: amqp.Table{}, Body: e.Record.Encode(),
		}})
	case ordered.Return:
		s.giveBack(e.Tag)
	case ordered.StartPass:
		s.try(func() error { return s.startPass(ordered.Source(e)) })
	case ordered.EndPass:
		s.endPass(ordered.Source(e))
	case ordered.Renew:
		s.why = errRenew
		s.stop()
	case ordered.StepDown:
		s.fail(fmt.Errorf("this process stops leading the group: %s", e.Reason))
	case ordered.Report:
		f.report(e.Full)
	}
}

// ack acks a delivery. If the message was poisoned, its copy is confirmed by then.
func (s *orderedSession) ack(tag ordered.Tag) {
	it := s.items[tag]
	if it == nil {
		return
	}
	delete(s.items, tag)
	s.bodies.drop(it)
	it.from.acks.ack(it.raw.DeliveryTag)
	if it.crashes > 0 {
		it.from.acks.hurry() // before the next can crash the process
	}
	if it.copied != nil {
		it.copied <- nil
		it.copied = nil
	}
}

// errUnknownParked is the fault of a message in a parked queue that no leader has published.
var errUnknownParked = errors.New("amqp: the message was in a queue for parked messages, and was not published by leat")

// copy publishes a copy of a delivery.
func (s *orderedSession) copy(e ordered.Copy) {
	f, it := s.receiver, s.items[e.Tag]
	if it == nil {
		s.fail(fmt.Errorf("no message has the tag %d", e.Tag))
		return
	}
	s.countDelivery(it, false)
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
	o.msg.Body = nil
	s.publisher.enqueue(e.Op, queued{o, it})
}

// confirmed passes n confirmations on to the takeover or the machine.
func (s *orderedSession) confirmed(n int) {
	f := s.receiver
	f.mu.Lock()
	defer f.mu.Unlock()
	op := s.publisher.confirmed(n)
	switch {
	case s.over || op == 0:
		return
	case s.machine != nil:
		s.machine.Confirmed(time.Now(), op)
	case s.election.takeover != nil:
		s.election.takeover.Confirmed(op)
	}
	f.act()
}

// A missingQueueError is returned if a queue of the group was deleted.
type missingQueueError struct{ queue string }

func (e *missingQueueError) Error() string { return fmt.Sprintf("queue %q does not exist", e.queue) }

// count corrects the broker's counts of a group that this process leads.
func (f *orderedReceiver) count(info *driver.GroupInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.session == nil || f.session.machine == nil {
		return
	}
	stats := f.session.machine.Stats()
	info.InFlight, info.Delayed = f.out, stats.Delayed+stats.Waiting
	const tick = 1 // not the application's
	info.Waiting += max(stats.Here-tick-stats.Waiting-f.out, 0)
	info.Parked, info.ParkedKeys = stats.Parked, stats.Stopped
}

// isMissing reports whether an error means that a queue or an exchange was deleted.
func isMissing(err error) bool {
	_, returned := errors.AsType[*missingQueueError](err)
	return returned || isCode(err, amqp.NotFound)
}

// report logs that the group has reached its limit of keys, or is below it again.
func (f *orderedReceiver) report(full bool) {
	if full {
		f.t.cfg.Logger.Error("leat: amqp: limit of waiting keys reached: no further key can be delayed or parked, and the group stops consuming",
			"group", f.sub.Group, "keys", f.config.MaxKeys)
		return
	}
	f.t.cfg.Logger.Info("leat: amqp: below the limit of waiting keys again", "group", f.sub.Group)
}

// giveBack returns a delivery to the group's queue.
func (s *orderedSession) giveBack(tag ordered.Tag) {
	it := s.items[tag]
	if it == nil {
		return
	}
	delete(s.items, tag)
	s.bodies.drop(it)
	s.receiver.unseen.add(&it.received)
	it.from.acks.requeue(it.raw.DeliveryTag)
}
