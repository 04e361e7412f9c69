package amqp

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/transports/internal/ordered"
)

// An orderedConn is the connection of a session of an ordered group, and what watches over it. Only the consumers and publishings of
// the session use it. Groups can't share a connection, for three reasons:
//
//   - A session ends by closing the connection, which gives back everything at once and in order, and ends all calls that
//     wait for an answer. The client library has no other way to end them, and the broker drops some acks of a channel that is closed alone.
//   - The session publishes over the connection, so the broker may block it. Then the group waits, and others must not.
//   - Reading stops while the group's messages use up its memory.
type orderedConn struct {
	receiver *orderedReceiver
	conn     *amqp.Connection
	wire     *writeBatcher
	work     sync.WaitGroup
	lost     chan error  // the reason why the session ends; buffer of one
	blocked  atomic.Bool // the broker does not read
}

func newOrderedConn(f *orderedReceiver) (*orderedConn, error) {
	conn, wire, err := f.t.cfg.dial(f.open, "ordered group "+f.sub.Group)
	if err != nil {
		return nil, err
	}
	return &orderedConn{receiver: f, conn: conn, wire: wire, lost: make(chan error, 1)}, nil
}

// orderedConsumer is a channel with one consumer.
type orderedConsumer struct {
	ch    *amqp.Channel
	acks  *acks
	from  ordered.Source
	queue string
	tag   string
	begun bool        // a message was handed out
	taken *byteBudget // of messages that the client library has received and the session has not
}

// try runs a function in the background, whose error ends the session.
func (c *orderedConn) try(do func() error) {
	c.work.Go(func() {
		if err := do(); err != nil {
			c.fail(err)
		}
	})
}

// fail ends the session with an error. Only the first one counts.
func (c *orderedConn) fail(err error) {
	select {
	case c.lost <- err:
	default:
	}
}

// watchConnection ends the session with its connection.
func (c *orderedConn) watchConnection() {
	closed := c.conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := c.conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	c.work.Go(func() {
		for b := range blocked { // until the connection is closed
			c.blocked.Store(b.Active)
			if b.Active {
				c.receiver.t.cfg.Logger.Warn("leat: amqp: the broker accepts no messages", "group", c.receiver.sub.Group, "reason", b.Reason)
			}
		}
		c.fail(lost(<-closed))
	})
}

// watch ends the session when a channel is closed or its consumer cancelled.
func (c *orderedConn) watch(ch *amqp.Channel) {
	closed, cancelled := ch.NotifyClose(make(chan *amqp.Error, 1)), ch.NotifyCancel(make(chan string, 1))
	c.work.Go(func() {
		for tag := range cancelled {
			c.fail(consumerCancelled(tag))
		}
		if reason := <-closed; reason != nil {
			c.fail(channelLost(reason))
		}
	})
}

// consume begins to consume a queue over its own channel.
func (c *orderedConn) consume(from ordered.Source, queue string, prefetch int, alone bool) (*orderedConsumer, <-chan amqp.Delivery, error) {
	ch, err := c.conn.Channel()
	if err != nil {
		return nil, nil, err
	}
	consumer := &orderedConsumer{ch: ch, from: from, queue: queue, tag: queue, taken: newByteBudget(c.receiver.mostBytes, overdueAlone)}
	c.wire.meter.watch(consumer.tag, consumer.taken)
	deliveries, err := consume(ch, queue, consumer.tag, prefetch, alone, consumerArguments(c.receiver.sub))
	if err != nil {
		return nil, nil, err
	}
	consumer.acks = newAcks(ch, max(prefetch/prefetchPerWorker, 1), prefetch*3/4)
	c.watch(ch)
	return consumer, deliveries, nil
}

// awaitExclusive waits until a queue has no consumer, and returns how many messages it has.
func (c *orderedConn) awaitExclusive(p *prober, queue string) (int, error) {
	for began := time.Now(); ; {
		q, there, err := p.queue(queue)
		switch {
		case err != nil:
			return 0, err
		case !there:
			return 0, &missingQueueError{queue}
		case q.Consumers == 0:
			return q.Messages, nil
		case time.Since(began) > orderedPatience:
			return 0, fmt.Errorf("another client consumes queue %q", queue)
		}
		if err := sleep(c.receiver.life, lockPause); err != nil {
			return 0, err
		}
	}
}
