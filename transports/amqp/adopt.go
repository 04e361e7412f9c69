package amqp

import (
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// adoptHeld moves messages that were parked in a group, when it was ordered, to the group's queue, and those that an
// earlier version held. Control messages are dropped. What can't be moved stays.
func (f *feed) adoptHeld(conn *amqp.Connection) {
	if f.t.topology.watermill() {
		return
	}
	p := prober{conn: conn}
	defer p.close()
	for _, queue := range append(parkedNames(f.sub.Group), heldName(f.sub.Group)) {
		q, there, err := p.queue(queue)
		if err == nil && there && q.Messages > 0 && q.Consumers == 0 {
			err = p.do(func(ch *amqp.Channel) error { return f.adoptFrom(ch, q) })
		}
		if err != nil && f.open.Err() == nil {
			f.t.cfg.Logger.Warn("leat: amqp: messages of a group that was ordered not moved", "group", f.sub.Group, "queue", queue, "error", err)
		}
	}
}

func (f *feed) adoptFrom(ch *amqp.Channel, q amqp.Queue) error {
	const size, global, multiple = 0, false, false
	const autoAck, noLocal = false, false
	if err := ch.Qos(stride, size, global); err != nil {
		return err
	}
	arrived, err := ch.Consume(q.Name, byBroker, autoAck, exclusive, noLocal, noWait, nil)
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
			distrust(d)
			if d.Headers[headerHeldNote] == nil && d.Headers[headerNote] == nil {
				out = append(out, f.adopted(d))
			}
		}
		moved += len(out)
		if err := f.t.publisher.send(f.open, out); err != nil {
			return err
		}
		for _, o := range out {
			if o.unroutable {
				return fmt.Errorf("queue %q is not there", o.key)
			}
		}
		for _, d := range window {
			if err := ch.Ack(d.DeliveryTag, multiple); err != nil {
				return err
			}
		}
		if _, err := ch.QueueDeclarePassive(q.Name, durable, autoDelete, exclusive, noWait, nil); err != nil { // the acks have arrived
			return err
		}
	}
	f.t.cfg.Logger.Info("leat: amqp: messages of a group that was ordered moved", "group", f.sub.Group, "count", moved)
	return nil
}

func (f *feed) adopted(d *amqp.Delivery) *outgoing {
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

// collect takes so many deliveries, or fewer where no more come.
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
