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
	// soundSession is how long a session lasts that did not fail at once.
	soundSession = 2 * time.Second
	// assertInterval is how often bindings are made again that somebody may have taken away: a
	// deleted exchange takes them along, and tells no consumer.
	assertInterval = 30 * time.Second
	// suspicion is how many times a message may be lost in a crash before it is handled alone.
	suspicion = 2
)

// session is one channel of a feed, from one loss of the connection to the next.
type session struct {
	feed *feed
	ch   *amqp.Channel
	wire *coalescer
	acks *acks

	gone      chan *amqp.Error // the channel was closed
	cancelled chan string      // the broker cancelled a consumer
	over      atomic.Bool
	pumps     sync.WaitGroup
	consumers int // made so far, for their tags
	tags      []string

	// A message that crashes its process crashes the next as well, and the broker counts a delivery
	// for every message that was fetched with it. So a session begins by fetching one message, and
	// more as soon as it sees one that has not been in two crashes: then a bad one is alone when it
	// crashes, and the count of the others stays true.
	careful atomic.Bool
	wide    chan struct{} // may fetch more
	idle    chan struct{} // closed when nothing is out, after the feed was closed
	settled func()
	drained bool
}

// run consumes until the feed is closed, over as many sessions as it takes.
func (f *feed) run() {
	defer f.release()
	pause := newBackoff()
	for f.open.Err() == nil {
		began := time.Now()
		s, err := f.connectAlone()
		if err == nil {
			err = s.serve()
			f.purge(s)
		}
		f.isolate()
		if time.Since(began) > soundSession {
			pause.Reset()
		}
		if f.open.Err() != nil {
			return
		}
		f.t.cfg.Logger.Warn("leat: amqp: consuming is interrupted", "group", f.sub.Group, "error", err)
		pause.Wait(f.open)
	}
}

// A queue that can't work, such as one of a cluster that has lost its majority, has the broker end the whole
// connection over which somebody asks for it (INTERNAL_ERROR). The connection is shared by all groups, and one after
// the other would lose it again and again.

// sickFailures is how often that may happen to a group before it gets a connection of its own.
const sickFailures = 3

// connectAlone is connect. While the connection was ended so a short time ago, one group connects at a time: then it
// is known over which group it is ended.
func (f *feed) connectAlone() (*session, error) {
	l := f.link()
	if l.isSick() {
		select {
		case l.turn <- struct{}{}:
			defer func() { <-l.turn }()
		case <-f.open.Done():
			return nil, context.Cause(f.open)
		}
	}
	s, err := f.connect()
	f.blame(err)
	return s, err
}

// blame counts an operation of this group that ended the connection.
func (f *feed) blame(err error) {
	if isCode(err, amqp.InternalError) {
		f.failures++
	}
}

// isolate gives a group a connection of its own that has ended the shared one too often.
func (f *feed) isolate() {
	if f.failures < sickFailures || f.open.Err() != nil {
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
		return // next time
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

// connect opens a channel, makes what is missing and begins to consume.
func (f *feed) connect() (*session, error) {
	conn, wire, err := f.link().connection(f.open)
	if err != nil {
		return nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	s := &session{feed: f, ch: ch, wire: wire, wide: make(chan struct{}, 1), idle: make(chan struct{})}
	s.settled = sync.OnceFunc(func() { close(s.idle) })
	s.gone = ch.NotifyClose(make(chan *amqp.Error, 1))
	s.cancelled = ch.NotifyCancel(make(chan string, len(f.queues)+1))
	s.acks = newAcks(ch, 1, 0)
	s.careful.Store(f.prefetch > 1)

	f.mu.Lock()
	f.session = s
	f.mu.Unlock()
	if err = f.t.topology.subscribe(ch, f.sub); err == nil {
		f.adoptHeld(conn)
		err = s.consume(s.firstPrefetch())
	}
	if err != nil {
		s.close()
		f.purge(s)
		return nil, err
	}
	return s, nil
}

func (s *session) firstPrefetch() int {
	if s.careful.Load() {
		return 1
	}
	return s.feed.prefetch
}

// consume begins to fetch so many messages ahead from each queue.
func (s *session) consume(prefetch int) error {
	const size, global = 0, false
	const autoAck, noLocal = false, false
	prefetch = s.feed.bytes.fit(prefetch)
	if err := s.ch.Qos(prefetch, size, global); err != nil {
		return err
	}
	s.acks.fit(prefetch)
	for _, queue := range s.feed.queues {
		s.consumers++
		tag := s.feed.sub.Group + "-" + strconv.Itoa(s.consumers)
		s.wire.meter.watch(tag, s.feed.bytes)
		deliveries, err := s.ch.Consume(queue, tag, autoAck, exclusive, noLocal, noWait, nil)
		if err != nil {
			return err
		}
		s.tags = append(s.tags, tag)
		s.pumps.Go(func() {
			// The range ends when the broker cancels the consumer or the channel is gone; it
			// never yields a message that nobody sent.
			for d := range deliveries {
				s.feed.arrive(s, queue, &d)
			}
		})
	}
	return nil
}

// judge decides after the first message whether more can be fetched at once.
func (s *session) judge(it *item) {
	if !it.suspect() && s.careful.CompareAndSwap(true, false) {
		s.acks.hold()
		s.wide <- struct{}{}
	}
}

func (s *session) isOver() bool { return s.over.Load() }

// serve returns when the channel is gone or the feed was closed and nothing is out.
func (s *session) serve() error {
	defer s.close()
	assert := time.NewTicker(assertInterval)
	defer assert.Stop()
	for {
		select {
		case err := <-s.gone:
			return channelLost(err)
		case tag := <-s.cancelled:
			return consumerCancelled(tag)
		case <-s.wide:
			if err := s.refocus(s.feed.prefetch); err != nil {
				return err
			}
		case <-s.feed.bytes.changed:
			if s.careful.Load() {
				continue
			}
			if err := s.refocus(s.feed.prefetch); err != nil {
				return err
			}
		case <-assert.C:
			if err := s.feed.t.topology.subscribe(s.ch, s.feed.sub); err != nil {
				s.feed.blame(err)
				return err
			}
		case <-s.feed.open.Done():
			return s.drain()
		}
	}
}

// refocus replaces the consumers by ones that fetch another number. Acks that are held are sent then.
func (s *session) refocus(prefetch int) error {
	defer s.acks.goOn()
	if err := s.cancel(); err != nil {
		return err
	}
	return s.consume(prefetch)
}

// settle returns when everything has arrived that the queues sent so far: they answer behind it.
func (s *session) settle() error {
	for _, queue := range s.feed.queues {
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

// drain is the end of a session whose feed was closed: it gives back what was not handed out, and
// stays until the rest is settled.
//
// What is not settled when the channel is closed goes back to its place in a quorum queue; what is
// nacked, or had its consumer cancelled, to the end. So with one worker, which promises the order of arrival, the
// consumer stays until everything that is out is settled; nor can the next one take over before.
func (s *session) drain() error {
	s.feed.t.active.Add(1) // Close waits for the last acks too
	s.drained = true
	defer s.feed.release()
	if s.feed.keepsPlace() {
		s.feed.giveBack()
		s.feed.release()
		if err := s.awaitIdle(); err != nil {
			return err
		}
		return s.rest()
	}
	s.acks.hold()
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.cancel(); err != nil {
		return err
	}
	s.pumps.Wait()
	s.acks.goOn()
	s.feed.giveBack()
	s.feed.release()
	if err := s.awaitIdle(); err != nil {
		return err
	}
	return s.rest()
}

// A channel keeps acks of quorum queues back while 32 wait for the disk, and forgets them when it is closed.

// rest gives the broker time to carry out many acks, where another consumer would be served.
func (s *session) rest() error {
	s.acks.hurry()
	if s.feed.t.cfg.QueueType == Classic || s.acks.recent() < pace {
		return nil
	}
	return sleep(s.feed.life, ackMemory)
}

func (s *session) awaitIdle() error {
	f := s.feed
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

// consumerCancelled tells the reasons that a broker may have: it does not say which it is. RabbitMQ 4.3 cancels a
// consumer where earlier versions close the channel.
func consumerCancelled(tag string) error {
	return fmt.Errorf("the broker cancelled the consumer %s: its queue was deleted or lost its leader, or an ack took longer than the "+
		"broker's consumer_timeout, so that all that was out comes again: give handlers a timeout that is shorter, or raise consumer_timeout on the broker", tag)
}

func channelLost(reason *amqp.Error) error {
	if reason == nil {
		return errors.New("the connection was lost")
	}
	if reason.Code == amqp.PreconditionFailed && strings.Contains(reason.Reason, "timed out") {
		return fmt.Errorf("the broker waited longer than its consumer_timeout for an ack, so that all that was out comes again: "+
			"give handlers a timeout that is shorter, or raise consumer_timeout on the broker: %w", reason)
	}
	return fmt.Errorf("the broker closed the channel: %w", reason)
}

// close ends the channel. What was not acked goes back to its queue.
func (s *session) close() {
	s.over.Store(true)
	s.acks.end()
	closeQuietly(s.ch)
	s.pumps.Wait()
	if s.drained {
		s.feed.t.active.Add(-1)
	}
}

// keepsPlace reports whether the order of the queue is to be kept when a consumer ends.
func (f *feed) keepsPlace() bool { return f.sub.Concurrency == 1 }

// giveBack returns what was never handed out. The broker would count each as delivered, which it
// was not; so it is published again, at the end of the queue. Where place matters more than the
// count, it is left to the end of the channel, but for what has an attempt that only this process knows.
func (f *feed) giveBack() {
	f.mu.Lock()
	back := make(map[*item]time.Duration)
	for it, h := range f.held {
		h.timer.Stop()
		back[it] = time.Until(h.due)
	}
	clear(f.held)
	for _, it := range f.ready {
		back[it] = 0
	}
	f.ready = nil
	moves := make(map[*item]time.Duration)
	for it, after := range back {
		if !f.keepsPlace() || it.counted || after > 0 {
			f.takeOut()
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
