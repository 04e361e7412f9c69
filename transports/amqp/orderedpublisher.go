package amqp

import (
	"cmp"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"
)

// An orderedPublisher publishes the messages of a session over a channel of its own, and passes on the broker's confirmations.
//
// The receiver's mu guards ops and queue. publish, enqueue and confirmed are called with it locked; they never wait for the broker.
type orderedPublisher struct {
	s     *orderedSession
	ch    *amqp.Channel
	some  chan struct{} // queue is not empty; buffer of one
	ops   []uint64      // of publishings that are not confirmed; 0: nothing waits for it
	queue []queued      // the last of them, which are not published yet
}

// maxConfirms is how many confirmations may wait for their goroutine.
const maxConfirms = 1024

// confirmations are what the broker has answered to publishings, in their order.
type confirmations struct {
	count int
	err   error // the first one
}

// open opens the channel in confirm mode. The client library waits until a notification is received, which must not take as long
// as the receiver's mu may be locked. So one goroutine receives, and another passes on.
func (p *orderedPublisher) open() (err error) {
	s := p.s
	if p.ch, err = s.conn.Channel(); err != nil {
		return err
	}
	confirmed, returned := p.ch.NotifyPublish(make(chan amqp.Confirmation, maxConfirms)), p.ch.NotifyReturn(make(chan amqp.Return))
	s.watch(p.ch)
	s.work.Go(p.run)
	passed := make(chan confirmations)
	s.work.Go(func() {
		defer close(passed)
		var next confirmations
		for confirmed != nil || returned != nil {
			var pass chan<- confirmations // nil: there is nothing to pass on
			if next != (confirmations{}) {
				pass = passed
			}
			select {
			case pass <- next:
				next = confirmations{}
			case c, ok := <-confirmed:
				switch {
				case !ok:
					confirmed = nil
				case !c.Ack:
					next.err = cmp.Or(next.err, errRefused)
				default:
					next.count++
				}
			case r, ok := <-returned: // before its confirmation
				if !ok {
					returned = nil
					continue
				}
				next.err = cmp.Or(next.err, error(&missingQueueError{r.RoutingKey}))
			}
		}
	})
	s.try(func() error {
		for c := range passed {
			if c.err != nil {
				return c.err
			}
			s.confirmed(c.count)
		}
		return nil
	})
	return p.ch.Confirm(noWait)
}

// queued is a message to publish when the connection's writer has room.
type queued struct {
	*outgoing
	of *orderedItem // the item with the body; nil if the message has its own
}

// publish publishes a message. Op is 0 if nothing waits for the confirmation.
func (p *orderedPublisher) publish(op uint64, o *outgoing) { p.enqueue(op, queued{outgoing: o}) }

// enqueue adds a message to those that run publishes.
func (p *orderedPublisher) enqueue(op uint64, o queued) {
	p.ops = append(p.ops, op)
	p.queue = append(p.queue, o)
	select {
	case p.some <- struct{}{}:
	default:
	}
}

// run publishes the queued messages in order, and no faster than the connection writes. So copies of messages whose bodies
// are in files need no memory while they wait.
func (p *orderedPublisher) run() {
	for {
		select {
		case <-p.some:
		case <-p.s.stopped:
			return
		}
		for {
			_ = p.s.wire.room(p.s.receiver.life) // a closed connection has room
			o, x, ok := p.next()
			var err error
			if x != nil {
				o.msg.Body, err = x.read()
				p.s.bodies.spill.release(x)
			}
			if err == nil && ok {
				err = p.ch.Publish(o.exchange, o.key, mandatory, immediate, o.msg)
			}
			if err != nil {
				p.s.fail(fmt.Errorf("publish to a queue of the group: %w", err))
			}
			if err != nil || !ok {
				break
			}
		}
	}
}

// next removes and returns the next message of the queue. If x is not nil, the body is there, and the caller releases it.
func (p *orderedPublisher) next() (o *outgoing, x *spilled, ok bool) {
	p.s.receiver.mu.Lock()
	defer p.s.receiver.mu.Unlock()
	if p.s.over || len(p.queue) == 0 {
		return nil, nil, false
	}
	next := p.queue[0]
	p.queue[0] = queued{}
	p.queue = p.queue[1:]
	if it := next.of; it != nil {
		next.msg.Body = it.raw.Body
		if x = it.spilled; x != nil {
			p.s.bodies.spill.retain(x)
		}
	}
	return next.outgoing, x, true
}

// confirmed removes the first n publishings, and returns the highest of their ops.
func (p *orderedPublisher) confirmed(n int) (op uint64) {
	for _, confirmed := range p.ops[:n] {
		op = max(op, confirmed)
	}
	p.ops = p.ops[n:]
	return op
}
