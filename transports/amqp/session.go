package amqp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	// stableSession is how long a session must last to count as successful.
	stableSession = 2 * time.Second
	// assertInterval is how often bindings are declared again: a deleted exchange deletes them without an error for consumers. A process
	// with many groups does so for one group in each assertPace.
	assertInterval = 30 * time.Second
	assertPace     = 3 * time.Second
	// suspicion is how many crashes a message may be in before it is delivered alone.
	suspicion = 2
)

// A session is one channel of a receiver, until the channel is closed.
type session struct {
	receiver *receiver
	ch       *amqp.Channel
	wire     *writeBatcher
	acks     *acks
	spill    spill

	gone      chan *amqp.Error // the channel was closed
	cancelled chan string      // the broker cancelled a consumer
	over      atomic.Bool
	pumps     sync.WaitGroup
	consumers int // number of consumers so far, for their tags
	tags      []string

	// A message that crashes its process also crashes the next one, and the broker counts a delivery of each message that was
	// fetched with it. So a session begins by fetching one message, and fetches more after the first one that was in less
	// than two crashes. Then a message that crashes its process is fetched alone, and the counts of the others are right.
	careful atomic.Bool
	wide    chan struct{} // signals that more may be fetched
	idle    chan struct{} // closed when all deliveries are settled, after the receiver was closed
	settled func()
	drained bool
}

// runSession runs one session and returns why it has ended.
func (f *receiver) runSession() error {
	s, err := f.connectOneByOne(f.declared)
	f.declared = false
	if err == nil {
		err = s.serve()
		f.purge(s)
	}
	f.isolate()
	return err
}

// If a queue does not work, for example because its cluster has lost its majority, the broker closes the whole connection of a
// client that declares it (INTERNAL_ERROR). All groups share the connection, and would lose it again and again.

// unstableAfter is how often that may happen to a group before it gets its own connection.
const unstableAfter = 3

// connectOneByOne calls connect. For a while after the connection was closed in this way, one group connects at a time: then it is
// known which group causes it.
func (f *receiver) connectOneByOne(declared bool) (*session, error) {
	l := f.link()
	if l.isUnstable() {
		select {
		case l.connecting <- struct{}{}:
			defer func() { <-l.connecting }()
		case <-f.open.Done():
			return nil, context.Cause(f.open)
		}
	}
	s, err := f.connect(declared)
	f.countConnectionFailure(err)
	return s, err
}

// countConnectionFailure counts an operation of this group because of which the broker closed the connection.
func (f *receiver) countConnectionFailure(err error) {
	if isCode(err, amqp.InternalError) {
		f.failures++
	}
}

// isolate gives the group its own connection if it has closed the shared one too often.
func (f *receiver) isolate() {
	if f.failures < unstableAfter || f.open.Err() != nil {
		return
	}
	f.failures = 0
	f.t.mu.Lock()
	isolated := f.own != nil
	f.t.mu.Unlock()
	if isolated {
		return
	}
	l, err := openLink(f.open, f.t.cfg, "group "+f.sub.Group)
	if err != nil {
		return // try again the next time
	}
	f.t.cfg.Logger.Error("leat: amqp: the broker ends the connection over this group's queues; the group gets a connection of its own",
		"group", f.sub.Group)
	f.t.mu.Lock()
	closed := f.t.closed
	if !closed {
		f.own = l
		f.t.extra = append(f.t.extra, l)
	}
	f.t.mu.Unlock()
	if closed {
		l.close(f.open)
	}
}

// connect opens a channel, makes what is missing unless it was declared just now, and begins to consume.
func (f *receiver) connect(declared bool) (*session, error) {
	conn, wire, err := f.link().connection(f.open)
	if err != nil {
		return nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	s := &session{receiver: f, ch: ch, wire: wire, spill: spill{create: f.t.createSpill}, wide: make(chan struct{}, 1), idle: make(chan struct{})}
	s.settled = sync.OnceFunc(func() { close(s.idle) })
	s.gone = ch.NotifyClose(make(chan *amqp.Error, 1))
	s.cancelled = ch.NotifyCancel(make(chan string, len(f.queues)+1))
	s.acks = newAcks(ch, 1, 0)
	s.careful.Store(f.prefetch > 1)

	f.mu.Lock()
	f.session = s
	f.mu.Unlock()
	if !declared {
		err = f.t.topology.subscribe(ch, f.sub)
	}
	if err == nil {
		f.adoptLegacy(conn)
		err = s.consume(1) // see careful
	}
	if err != nil {
		s.close()
		f.purge(s)
		return nil, err
	}
	return s, nil
}

// consume begins to consume all queues with this prefetch.
func (s *session) consume(prefetch int) error {
	const size, global = 0, false
	prefetch = s.receiver.bytes.fit(prefetch)
	if err := s.ch.Qos(prefetch, size, global); err != nil {
		return err
	}
	s.acks.fit(prefetch)
	for _, queue := range s.receiver.queues {
		s.consumers++
		tag := s.receiver.sub.Group + "-" + strconv.Itoa(s.consumers)
		s.wire.meter.watch(tag, s.receiver.bytes)
		deliveries, err := s.ch.Consume(queue, tag, autoAck, exclusive, noLocal, noWait, consumerArguments(s.receiver.sub))
		if err != nil {
			return err
		}
		s.tags = append(s.tags, tag)
		s.pumps.Go(func() {
			// The range ends when the broker cancels the consumer or the channel is closed.
			for d := range deliveries {
				s.receiver.arrive(s, queue, &d)
			}
		})
	}
	return nil
}

// correctAttempt allows the session to fetch more, after the first message that is no suspect.
func (s *session) correctAttempt(it *item) {
	if !it.suspect() && s.careful.CompareAndSwap(true, false) {
		s.acks.pause()
		s.wide <- struct{}{}
	}
}

// serve blocks until the channel is closed, or until the receiver is closed and all deliveries are settled.
func (s *session) serve() error {
	defer s.close()
	assert := time.NewTimer(s.receiver.t.topology.assertAfter())
	defer assert.Stop()
	for {
		select {
		case err := <-s.gone:
			return channelLost(err)
		case tag := <-s.cancelled:
			return consumerCancelled(tag)
		case <-s.wide:
			if err := s.consumeAgain(s.receiver.prefetch); err != nil {
				return err
			}
		case <-s.receiver.bytes.changed:
			if s.careful.Load() {
				continue
			}
			if err := s.consumeAgain(s.receiver.prefetch); err != nil {
				return err
			}
		case <-assert.C:
			assert.Reset(s.receiver.t.topology.assertAfter())
			if err := s.receiver.t.topology.subscribe(s.ch, s.receiver.sub); err != nil {
				s.receiver.countConnectionFailure(err)
				return err
			}
		case <-s.receiver.open.Done():
			return s.drain()
		}
	}
}

// consumeAgain replaces the consumers by ones with another prefetch, and sends the paused acks.
func (s *session) consumeAgain(prefetch int) error {
	defer s.acks.resume()
	if err := s.cancel(); err != nil {
		return err
	}
	s.pumps.Wait() // later messages must not overtake those that the library has received for the cancelled consumers
	return s.consume(prefetch)
}

// settle blocks until all messages have arrived that the queues have sent so far: a queue answers a request after them.
func (s *session) settle() error {
	for _, queue := range s.receiver.queues {
		if _, err := s.ch.QueueDeclarePassive(queue, durable, autoDelete, exclusive, noWait, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) cancel() error {
	for _, tag := range s.tags {
		if err := s.ch.Cancel(tag, noWait); err != nil {
			return err
		}
	}
	s.tags = nil
	return nil
}

// drain ends a session whose receiver was closed: it gives back the messages that were not delivered, and blocks until the others
// are settled.
//
// When a channel is closed, a quorum queue puts unsettled messages back to their positions; when they are nacked or their consumer
// is cancelled, to the end. So with one worker, which promises the order of arrival, the consumer stays until all deliveries are
// settled, and the next consumer can't take over before.
func (s *session) drain() error {
	s.receiver.t.active.Add(1) // Close also waits for the last acks
	s.drained = true
	defer s.receiver.release()
	if !s.receiver.keepsOrder() {
		s.acks.pause()
		if err := s.settle(); err != nil {
			return err
		}
		if err := s.cancel(); err != nil {
			return err
		}
		s.pumps.Wait()
		s.acks.resume()
	}
	s.receiver.giveBack()
	s.receiver.release()
	if err := s.awaitIdle(); err != nil {
		return err
	}
	return s.rest()
}

// A channel delays acks of quorum queues while 32 of them wait for the disk, and drops them when it is closed.

// rest gives the broker time to process many acks, if another consumer would get the messages otherwise.
func (s *session) rest() error {
	s.acks.hurry()
	if s.receiver.t.cfg.QueueType == Classic || s.acks.recent() < pace {
		return nil
	}
	return sleep(s.receiver.life, ackMemory)
}

func (s *session) awaitIdle() error {
	f := s.receiver
	f.mu.Lock()
	if f.out == 0 {
		s.settled()
	}
	f.mu.Unlock()
	select {
	case <-s.idle:
		return nil
	case err := <-s.gone:
		return channelLost(err)
	case <-f.life.Done():
		return context.Cause(f.life)
	}
}

var errAckTimeout = errors.New("everything unacked is redelivered: give handlers a timeout that is shorter, or raise consumer_timeout on the broker")

// consumerCancelled returns an error with the possible reasons, because the broker gives none. RabbitMQ 4.3 cancels a consumer in
// cases in which earlier versions close the channel.
func consumerCancelled(tag string) error {
	return fmt.Errorf("the broker cancelled the consumer %s: its queue was deleted or lost its leader, or an ack took longer than the "+
		"broker's consumer_timeout, so %w", tag, errAckTimeout)
}

func channelLost(reason *amqp.Error) error {
	if reason == nil {
		return errors.New("the connection was lost")
	}
	if reason.Code == amqp.PreconditionFailed && strings.Contains(reason.Reason, "timed out") {
		return fmt.Errorf("the broker waited longer than its consumer_timeout for an ack, so %w: %w", errAckTimeout, reason)
	}
	return fmt.Errorf("the broker closed the channel: %w", reason)
}

// close closes the channel. The broker requeues messages that were not acked.
func (s *session) close() {
	s.over.Store(true)
	s.acks.end()
	closeQuietly(s.ch)
	s.pumps.Wait()
	if s.drained {
		s.receiver.t.active.Add(-1)
	}
}

// keepsOrder reports whether the order of the queue must be kept when a consumer ends.
func (f *receiver) keepsOrder() bool { return f.sub.Concurrency == 1 }

// giveBack gives back the messages that were not delivered. If they were requeued, the broker would count a delivery for each, so
// copies are published to the end of the queue. If the order matters more than the count, closing the channel requeues them,
// except for those with an attempt that is only counted in this process.
func (f *receiver) giveBack() {
	f.mu.Lock()
	back := make(map[*item]time.Duration)
	for it, h := range f.redeliveryTimers {
		h.timer.Stop()
		back[it] = time.Until(h.due)
	}
	clear(f.redeliveryTimers)
	for _, it := range f.ready {
		back[it] = 0
	}
	f.ready = nil
	moves := make(map[*item]time.Duration)
	for it, after := range back {
		if !f.keepsOrder() || it.counted || after > 0 {
			f.countDelivered()
			moves[it] = after
		}
	}
	f.mu.Unlock()

	var all sync.WaitGroup
	for it, after := range moves {
		all.Add(1)
		f.t.background(func(ctx context.Context) {
			defer all.Done()
			f.move(ctx, it, it.attempts, after)
		})
	}
	all.Wait()
}
