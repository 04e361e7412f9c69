package amqp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// An inspector reads the state of the broker: over AMQP, and from the management API.
type inspector struct {
	topology *declaredTopology
	life     *lifetime
	countLed func(*driver.GroupInfo) // see Transport.countLed
}

// An inspection has its own connection, which can be closed at any time without an effect on others.
type inspection struct {
	prober
	*inspector
	ctx context.Context
}

// inspect calls do with a new connection, until ctx is done or the transport closed.
func (in *inspector) inspect(ctx context.Context, what string, do func(*inspection) error) error {
	if !in.life.enter() {
		return driver.ErrClosed
	}
	in.life.active.Add(-1) // Close need not wait
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(in.life.ctx, func() { cancel(driver.ErrClosed) })()
	conn, _, err := in.topology.cfg.dial(ctx, "inspect")
	if err == nil {
		defer context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })()
		defer func() { _ = conn.CloseDeadline(time.Now().Add(lastWords)) }()
		err = do(&inspection{ctx: ctx, inspector: in, prober: prober{conn: conn}})
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("amqp: %s: %w", what, err)
}

// topics returns the topics of a group, sorted.
func (t *topology) topics(s driver.Subscription) []string {
	topics := s.Topics
	if t.watermill() {
		topics = s.Known
	}
	return slices.Compact(slices.Sorted(slices.Values(topics)))
}

// fixOf returns what to do about an error of the management API.
func fixOf(err error) string {
	if failed, ok := errors.AsType[*ManagementError](err); ok {
		return failed.fix
	}
	return "try again"
}

// count returns the counts of the group's queues; ok is false if it has none.
func (i *inspection) count(s driver.Subscription) (info driver.GroupInfo, ok bool, err error) {
	info = driver.GroupInfo{Name: s.Group, Topics: i.topology.topics(s), Delayed: driver.Unknown, InFlight: driver.Unknown}
	for _, name := range i.topology.queues(s) {
		q, there, err := i.counts(name)
		if err != nil {
			return info, false, err
		}
		ok = ok || there
		info.Waiting += q.Messages
		info.Consumers = max(info.Consumers, q.Consumers)
	}
	if s.Order != driver.Unordered {
		for _, name := range parkedNames(s.Group) {
			parked, _, err := i.counts(name)
			if err != nil {
				return info, false, err
			}
			info.Parked += parked.Messages
		}
	}
	poisoned, _, err := i.counts(poisonName(s.Group))
	if err != nil {
		return info, false, err
	}
	info.Poisoned = poisoned.Messages
	i.countLed(&info)
	return info, ok, err
}

// conflictWith compares the arguments of the group's queues with those that leat declares. It declares only queues that exist.
func (i *inspection) conflictWith(s driver.Subscription) error {
	for _, name := range i.topology.queues(s) {
		_, there, err := i.queue(name)
		if err == nil && there {
			err = i.do(func(ch *amqp.Channel) error {
				d := &declarer{ch: ch}
				d.queue(name, i.topology.queueArgs(s))
				return d.err
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A prober queries one queue after the other. The broker closes the channel for each queue that does not exist.
type prober struct {
	conn   *amqp.Connection
	ch     *amqp.Channel
	asker  asker
	hidden bool // the user has no right to some of the queues
}

// do calls what with an open channel.
func (p *prober) do(what func(*amqp.Channel) error) (err error) {
	if p.ch == nil || p.ch.IsClosed() {
		if p.ch, err = p.conn.Channel(); err != nil {
			return err
		}
	}
	return what(p.ch)
}

// queue returns the queue's counts; ok is false if there is none of that name. If a quorum queue takes long to answer, they are zero.
func (p *prober) queue(name string) (q amqp.Queue, ok bool, err error) {
	return p.ask(name, func(ch *amqp.Channel, name string) (amqp.Queue, error) {
		return ch.QueueDeclarePassive(name, durable, autoDelete, exclusive, noWait, nil)
	})
}

// counts is as queue, and waits for a quorum queue that takes long.
func (p *prober) counts(name string) (q amqp.Queue, ok bool, err error) {
	return p.ask(name, p.asker.counts)
}

// peek is as counts, and takes a queue for missing to which the user has no right: RabbitMQ 4.3 does not show it to that user.
func (p *prober) peek(name string) (q amqp.Queue, ok bool, err error) {
	q, ok, err = p.counts(name)
	if isCode(err, amqp.AccessRefused) {
		p.hidden, err = true, nil
	}
	return q, ok, err
}

func (p *prober) ask(name string, count func(*amqp.Channel, string) (amqp.Queue, error)) (q amqp.Queue, ok bool, err error) {
	err = p.do(func(ch *amqp.Channel) error {
		q, err = count(ch, name)
		return err
	})
	if isCode(err, amqp.NotFound) {
		return q, false, nil
	}
	return q, err == nil, err
}

const (
	// leaderTimeout is how long RabbitMQ waits for the leader of a quorum queue, with some tolerance. Then it answers that the
	// queue has no messages and no consumers.
	leaderTimeout = 200 * time.Millisecond
	// countsWithin is how long a leader may take. After that the queue counts as empty.
	countsWithin = 10 * time.Second
)

// roundTrips is how many answers that need no leader are compared with a slow one.
const roundTrips = 5

// An asker reads the counts of queues over one connection. It knows how quick the network and the broker are.
type asker struct {
	fastest time.Duration // of all answers; zero for none
	asked   bool          // for answers that need no leader
	unsure  bool          // the last counts are zero because the leader took too long
}

// counts returns the counts of a queue. It asks again if RabbitMQ seems to have answered without the queue's leader: the queue
// seems to be empty, and the answer took longer than one that needs no leader.
func (a *asker) counts(ch *amqp.Channel, queue string) (q amqp.Queue, err error) {
	for first := time.Now(); ; {
		took, err := a.time(func() error {
			q, err = ch.QueueDeclarePassive(queue, durable, autoDelete, exclusive, noWait, nil)
			return err
		})
		a.unsure = false
		if err != nil || q.Messages > 0 || q.Consumers > 0 || took < leaderTimeout {
			return q, err
		}
		if a.unsure = time.Since(first) > countsWithin; a.unsure {
			return q, nil
		}
		for n := 0; n < roundTrips && !a.asked && a.fastest > took/2; n++ {
			_, err := a.time(func() error {
				return ch.ExchangeDeclarePassive("amq.topic", amqp.ExchangeTopic, durable, autoDelete, internal, noWait, nil)
			})
			if err != nil {
				return q, err
			}
		}
		if a.asked = true; a.fastest > took/2 {
			return q, nil // the network is slow
		}
	}
}

// time returns how long a request takes.
func (a *asker) time(request func() error) (took time.Duration, err error) {
	began := time.Now()
	err = request()
	took = time.Since(began)
	if err == nil && (a.fastest == 0 || took < a.fastest) {
		a.fastest = took
	}
	return took, err
}

// A counter queries queues over one channel, which it keeps open, for one caller at a time.
type counter struct {
	turn chan struct{}
	prober
}

// queue returns the queue's counts; there is false if the queue does not exist. It returns early when ctx is done; the next
// caller can use the channel when the answer has arrived. The broker must never block the link.
func (c *counter) queue(ctx context.Context, l *link, name string) (q amqp.Queue, there bool, err error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return q, false, context.Cause(ctx)
	}
	conn, _, err := l.connection(ctx)
	if err != nil {
		<-c.turn
		return q, false, err
	}
	if c.conn != conn {
		c.prober = prober{conn: conn}
	}
	type answer struct {
		amqp.Queue
		there bool
		err   error
	}
	answers := make(chan answer, 1)
	go func() { // ends with the connection at the latest
		var a answer
		a.Queue, a.there, a.err = c.prober.counts(name)
		<-c.turn
		answers <- a
	}()
	select {
	case a := <-answers:
		return a.Queue, a.there, a.err
	case <-ctx.Done():
		return q, false, context.Cause(ctx)
	}
}

// close closes the channel, if there is one.
func (p *prober) close() {
	if p.ch != nil {
		closeQuietly(p.ch)
	}
}
