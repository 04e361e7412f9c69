package amqp

import (
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// adoptLegacy moves messages to the group's queue that were parked while the group was ordered, or that an earlier version
// kept in <group>.held. Control messages are dropped. Messages that can't be moved stay.
func (f *receiver) adoptLegacy(conn *amqp.Connection) {
	if f.t.topology.watermill() {
		return
	}
	p := prober{conn: conn}
	defer p.close()
	for _, queue := range append(parkedNames(f.sub.Group), legacyQueueName(f.sub.Group)) {
		q, there, err := p.queue(queue)
		if err == nil && there && q.Messages > 0 && q.Consumers == 0 {
			err = p.do(func(ch *amqp.Channel) error { return f.adoptFrom(ch, q) })
		}
		if err != nil && f.open.Err() == nil {
			f.t.cfg.Logger.Warn("leat: amqp: parked messages not moved to the queue of a group that is not ordered any more", "group", f.sub.Group, "queue", queue, "error", err)
		}
	}
}

func (f *receiver) adoptFrom(ch *amqp.Channel, q amqp.Queue) error {
	arrived, err := consume(ch, q.Name, byBroker, stride, exclusive, nil)
	if err != nil {
		return err
	}
	moved := 0
	for left := q.Messages; left > 0; {
		window := collect(arrived, min(left, stride))
		if len(window) == 0 {
			break // another process of the group moves them
		}
		left -= len(window)
		var out []*outgoing
		for _, d := range window {
			dropForeignHeaders(d)
			if d.Headers[headerHeldNote] == nil && d.Headers[headerControl] == nil {
				out = append(out, f.adopted(d))
			}
		}
		moved += len(out)
		if err := f.t.publisher.send(f.open, out); err != nil {
			return err
		}
		for _, o := range out {
			if o.unroutable {
				return fmt.Errorf("queue %q does not exist", o.key)
			}
		}
		for _, d := range window {
			if err := ch.Ack(d.DeliveryTag, single); err != nil {
				return err
			}
		}
		if _, err := ch.QueueDeclarePassive(q.Name, durable, autoDelete, exclusive, noWait, nil); err != nil { // the acks have arrived
			return err
		}
	}
	f.t.cfg.Logger.Info("leat: amqp: parked messages moved to the queue of a group that is not ordered any more", "group", f.sub.Group, "count", moved)
	return nil
}

func (f *receiver) adopted(d *amqp.Delivery) *outgoing {
	o := &outgoing{key: f.queues[0], msg: copyOf(d, "")}
	for _, name := range []string{headerHead, headerSeq, headerStamp, headerRepeat} {
		delete(o.msg.Headers, name)
	}
	if micros, ok := d.Headers[headerHeldUntil].(int64); ok {
		if wait := time.Until(time.UnixMicro(micros)); wait > 0 {
			o, _ = f.t.topology.redelivery(f.sub, o.key, wait, o.msg)
		}
	}
	return o
}

// collect returns n deliveries, or fewer if no more arrive.
func collect(arrived <-chan amqp.Delivery, n int) (all []*amqp.Delivery) {
	timeout := time.NewTimer(silence)
	defer timeout.Stop()
	for len(all) < n {
		select {
		case d, ok := <-arrived:
			if !ok {
				return all
			}
			all = append(all, &d)
			timeout.Reset(silence)
		case <-timeout.C:
			return all
		}
	}
	return all
}
