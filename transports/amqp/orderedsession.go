package amqp

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/transports/internal/ordered"
)

const (
	// orderedPatience is how long a step of a takeover, or the begin of a pass, may take.
	orderedPatience = 30 * time.Second
	// settlePatience is how long a session that stops waits for the broker.
	settlePatience = 10 * time.Second
	// beatEvery is how often a process looks whether it stood still.
	beatEvery = 200 * time.Millisecond
	// maxConfirms is how many confirmations may wait for their goroutine.
	maxConfirms = 1024
)

// orderedSession is one connection of an ordered group, from one loss of it to the next. All consumers and all
// publishings of the session use it, and nothing else does.
//
// The feed's mu guards what the session knows. With mu held, the session publishes and acks, which never waits for the
// broker; whatever waits for an answer is done by goroutines without mu, which end when the connection is closed.
type orderedSession struct {
	feed      *orderedFeed
	conn      *amqp.Connection
	publisher *amqp.Channel
	group     *orderedConsumer
	work      sync.WaitGroup
	timer     *time.Timer
	lost      chan error    // why the session ends; holds one
	elected   chan struct{} // a message has come from the group's queue; holds one
	confirms  confirmations
	blocked   atomic.Bool // the broker reads nothing for now

	// Guarded by the feed's mu:
	over     bool
	early    []*ordered.Message // what came before the takeover
	takeover *ordered.Takeover
	log      *orderedLog // while the takeover reads it
	machine  *ordered.Machine
	tags     ordered.Tag
	items    map[ordered.Tag]*orderedItem // that are not acked
	ops      []uint64                     // of publishings that are not confirmed; 0: nobody waits for it
	passes   map[ordered.Source]*orderedConsumer
	arrivals int // from the group's queue
	nextTick time.Time
	beat     time.Time
	stopping bool
	deadline *time.Timer   // of a session that stops
	why      error         // it stops
	stopped  chan struct{} // closed when it has
}

// orderedConsumer is a channel with one consumer.
type orderedConsumer struct {
	ch    *amqp.Channel
	acks  *acks
	from  ordered.Source
	queue string
	tag   string
	begun bool // a message was handed out
}

var errRenew = errors.New("the log of the group is long, and is written anew")

// serve is one session. It returns why it has ended.
func (f *orderedFeed) serve(declared bool) error {
	conn, _, err := f.t.cfg.dial(f.open, "ordered group "+f.sub.Group)
	if err != nil {
		return err
	}
	s := &orderedSession{
		feed: f, conn: conn, timer: time.NewTimer(time.Hour), lost: make(chan error, 1), elected: make(chan struct{}, 1),
		confirms: confirmations{more: make(chan struct{}, 1)}, items: make(map[ordered.Tag]*orderedItem),
		passes: make(map[ordered.Source]*orderedConsumer), beat: time.Now(), stopped: make(chan struct{}),
	}
	defer s.close()
	// A call that waits for an answer is given up by closing the connection.
	defer context.AfterFunc(f.life, func() { _ = conn.CloseDeadline(time.Now().Add(lastWords)) })()
	if err := s.begin(declared); err != nil {
		return err
	}
	return s.run()
}

// begin opens the channels, and consumes the group's queue.
func (s *orderedSession) begin(declared bool) (err error) {
	f := s.feed
	s.watchConnection()
	if !declared {
		if err := s.declare(); err != nil {
			return err
		}
	}
	if s.publisher, err = s.conn.Channel(); err != nil {
		return err
	}
	if err := s.confirm(); err != nil {
		return err
	}
	if err := s.awaitToken(); err != nil {
		return err
	}
	f.mu.Lock()
	f.session = s
	s.nextTick = time.Now()
	f.mu.Unlock()
	c, deliveries, err := s.consume(ordered.Source{}, f.queue, f.config.Prefetch, false)
	if err != nil {
		return err
	}
	f.mu.Lock()
	s.group = c
	f.mu.Unlock()
	s.pump(c, deliveries)
	s.advance()
	return nil
}

// declare makes again what the group needs.
func (s *orderedSession) declare() error {
	ch, err := s.conn.Channel()
	if err != nil {
		return err
	}
	defer closeQuietly(ch)
	t := s.feed.t.topology
	if err := t.declareShared(ch); err != nil {
		return err
	}
	for _, way := range t.ways() {
		if err := way.declare(s.feed.open, t.declarer(ch)); err != nil {
			return err
		}
	}
	return t.subscribe(ch, s.feed.sub)
}

// bind makes the bindings again, which a deleted exchange takes along.
func (s *orderedSession) bind() {
	ch, err := s.conn.Channel()
	if err != nil {
		s.fail(err)
		return
	}
	defer closeQuietly(ch)
	d := s.feed.t.topology.declarer(ch)
	s.feed.t.topology.declareExchange(d)
	s.feed.t.topology.bindGroup(d, s.feed.sub)
	if d.err != nil {
		s.fail(d.err)
	}
}

// run returns why the session has ended.
func (s *orderedSession) run() error {
	f := s.feed
	assert, beat := time.NewTicker(assertInterval), time.NewTicker(beatEvery)
	defer assert.Stop()
	defer beat.Stop()
	closed := f.open.Done()
	for {
		select {
		case err := <-s.lost:
			return err
		case <-f.life.Done():
			return context.Cause(f.life)
		case <-closed:
			closed = nil
			f.t.active.Add(1) // Close waits for the last acks too
			defer f.t.active.Add(-1)
			f.mu.Lock()
			s.stop()
			f.mu.Unlock()
			f.release()
		case <-s.stopped:
			return s.finish()
		case <-s.elected:
			s.work.Go(s.takeOver)
		case <-assert.C:
			s.work.Go(s.bind)
		case <-beat.C:
			f.mu.Lock()
			s.checkStall(time.Now())
			f.mu.Unlock()
		case <-s.timer.C:
			s.advance()
		}
	}
}

// advance tells the machine the time. A session that does not lead sends ticks.
func (s *orderedSession) advance() {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	switch {
	case s.over:
		return
	case s.blocked.Load(): // nothing can arrive
	case s.machine != nil:
		s.machine.Advance(now)
	case !now.Before(s.nextTick):
		s.nextTick = now.Add(f.config.Tick)
		s.publish(0, controlMessage(f.queue, ordered.ControlTick, "", "", ordered.Name{}))
	}
	f.act()
}

// arm sets the timer to when advance is to be called. The caller holds the feed's mu.
func (s *orderedSession) arm(now time.Time) {
	next := s.nextTick
	if s.machine != nil {
		next = s.machine.Next()
	}
	s.timer.Reset(min(max(next.Sub(now), 0), s.feed.config.Tick/2))
}

// checkStall finds out whether the process stood still for so long that the broker may have given it up. It looks at both
// clocks: the monotonic one stands still while the machine sleeps, and the other may be set. The caller holds the feed's mu.
func (s *orderedSession) checkStall(now time.Time) {
	limit := s.conn.Config.Heartbeat * 3 / 2
	if limit <= 0 {
		limit = defaultHeartbeat * 3 / 2
	}
	stood := max(now.Sub(s.beat), now.Round(0).Sub(s.beat.Round(0)))
	s.beat = now
	if stood > limit && s.machine != nil && !s.over {
		s.machine.Stalled(now)
		s.carryOut()
	}
}

// stop lets workers settle what they have, and hands nothing out any more. The caller holds the feed's mu.
func (s *orderedSession) stop() {
	if s.stopping || s.over {
		return
	}
	s.stopping = true
	if s.machine != nil {
		now := time.Now()
		var seen []ordered.Tag
		for _, it := range s.feed.ready {
			if it.seen { // nobody else knows of its attempt
				seen = append(seen, it.tag)
			}
		}
		s.machine.Stop(now)
		for _, tag := range seen {
			s.machine.Failed(now, tag, 0)
		}
	}
	s.feed.ready = nil
	s.feed.act()
}

// checkStopped finds out whether a session that stops has come to its end. The caller holds the feed's mu.
func (s *orderedSession) checkStopped() {
	if !s.stopping || s.feed.out > 0 {
		return
	}
	if s.machine == nil || s.machine.Settled() {
		s.end()
		return
	}
	if s.deadline == nil { // a fence can't return behind too much that is not settled
		s.deadline = time.AfterFunc(settlePatience, func() {
			s.feed.mu.Lock()
			defer s.feed.mu.Unlock()
			s.end()
		})
	}
}

// finish makes sure that the broker has the acks: a channel of a quorum queue keeps acks back while 32 wait for the disk,
// and forgets them when it is closed. The queue answers behind them to a consumer that only stands in line.
func (s *orderedSession) finish() error {
	const autoAck, noLocal = false, false
	s.feed.mu.Lock()
	consumers := s.consumers()
	s.feed.mu.Unlock()
	recent := 0
	for _, c := range consumers {
		c.acks.hurry()
		recent += c.acks.recent()
	}
	if recent == 0 || s.feed.t.cfg.QueueType == Classic || s.machine == nil {
		return s.why
	}
	tag := s.feed.sub.Group + "-last"
	if _, err := s.group.ch.Consume(s.feed.queue, tag, autoAck, exclusive, noLocal, noWait, nil); err != nil {
		return err
	}
	if err := s.group.ch.Cancel(tag, noWait); err != nil {
		return err
	}
	if len(consumers) > 1 && recent >= pace {
		return sleep(s.feed.life, ackMemory)
	}
	return s.why
}

// consumers returns those of the group's queue and of parked queues. The caller holds the feed's mu.
func (s *orderedSession) consumers() (all []*orderedConsumer) {
	if s.group != nil {
		all = append(all, s.group)
	}
	return slices.AppendSeq(all, maps.Values(s.passes))
}

// end ends what the session knows. Its connection is closed a moment later. The caller holds the feed's mu.
func (s *orderedSession) end() {
	if s.over {
		return
	}
	s.over = true
	f := s.feed
	var out []ordered.Tag
	for tag, it := range s.items {
		switch {
		case it.out:
			out = append(out, tag)
		case it.raw.Headers[headerNote] == nil:
			f.unseen.add(&it.received)
		}
		if it.copied != nil {
			it.copied <- it.late()
			it.copied = nil
		}
	}
	if s.machine != nil {
		if s.stopping {
			s.machine.Leave()
			s.carryOutEffects()
		}
		s.machine.Close(out)
	}
	f.forget(s)
	close(s.stopped)
}

// close closes the connection, and waits for the session's goroutines.
func (s *orderedSession) close() {
	s.feed.mu.Lock()
	s.end()
	s.timer.Stop()
	if s.deadline != nil {
		s.deadline.Stop()
	}
	consumers := s.consumers()
	s.feed.mu.Unlock()
	for _, c := range consumers {
		c.acks.end()
	}
	_ = s.conn.CloseDeadline(time.Now().Add(lastWords))
	s.work.Wait()
}

// fail ends the session, if nothing else has.
func (s *orderedSession) fail(err error) {
	select {
	case s.lost <- err:
	default:
	}
}

// watchConnection ends the session with its connection.
func (s *orderedSession) watchConnection() {
	closed := s.conn.NotifyClose(make(chan *amqp.Error, 1))
	blocked := s.conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	s.work.Go(func() {
		for b := range blocked { // until the connection is closed
			s.blocked.Store(b.Active)
			if b.Active {
				s.feed.t.cfg.Logger.Warn("leat: amqp: the broker accepts no messages for now", "group", s.feed.sub.Group, "reason", b.Reason)
			}
		}
		s.fail(lost(<-closed))
	})
}

// watch ends the session with a channel that the session needs.
func (s *orderedSession) watch(ch *amqp.Channel) {
	closed, cancelled := ch.NotifyClose(make(chan *amqp.Error, 1)), ch.NotifyCancel(make(chan string, 1))
	s.work.Go(func() {
		for tag := range cancelled {
			s.fail(consumerCancelled(tag))
		}
		if reason := <-closed; reason != nil {
			s.fail(channelLost(reason))
		}
	})
}

// consume begins to consume a queue over a channel of its own.
func (s *orderedSession) consume(from ordered.Source, queue string, prefetch int, alone bool) (*orderedConsumer, <-chan amqp.Delivery, error) {
	const size, global = 0, false
	const autoAck, noLocal = false, false
	ch, err := s.conn.Channel()
	if err != nil {
		return nil, nil, err
	}
	c := &orderedConsumer{ch: ch, from: from, queue: queue, tag: queue}
	if err := ch.Qos(prefetch, size, global); err != nil {
		return nil, nil, err
	}
	deliveries, err := ch.Consume(queue, c.tag, autoAck, alone, noLocal, noWait, nil)
	if err != nil {
		return nil, nil, err
	}
	c.acks = newAcks(ch, max(prefetch/prefetchPerWorker, 1), prefetch*3/4)
	s.watch(ch)
	return c, deliveries, nil
}

// pump takes deliveries in until the consumer ends.
func (s *orderedSession) pump(c *orderedConsumer, deliveries <-chan amqp.Delivery) {
	s.work.Go(func() {
		for d := range deliveries {
			s.arrive(c, &d)
		}
	})
}

// arrive takes a delivery in.
func (s *orderedSession) arrive(c *orderedConsumer, d *amqp.Delivery) {
	f := s.feed
	it := newOrderedItem(s, c, d)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !s.over {
		s.take(it)
		f.act()
	}
}

// take passes a delivery on. The caller holds the feed's mu.
func (s *orderedSession) take(it *orderedItem) {
	now := time.Now()
	if it.raw.Headers[headerNote] == nil {
		s.feed.unseen.correct(&it.received)
	}
	s.tags++
	it.tag = s.tags
	s.items[it.tag] = it
	msg := it.message()
	if it.from.from.Pair == 0 {
		s.arrivals++
	}
	switch {
	case s.machine != nil:
		s.machine.Arrived(now, it.from.from, msg)
	case s.takeover != nil:
		s.takeover.Arrived(now, msg)
	default:
		s.early = append(s.early, msg)
		if len(s.early) == 1 {
			s.elected <- struct{}{}
		}
	}
}

// judge corrects a message's count of crashes, once. The broker counts a crash for every message that the process had
// fetched, not only for the one that ended it. A suspect is handed out alone, so after a crash it is the first to be
// redelivered, and its count is true. The count of any other message is bounded by what makes a suspect, or by its header.
// A classic queue does not count; judge returns true if the message is to be sent away once with the count in a header.
func (s *orderedSession) judge(it *orderedItem, first bool) (sendAway bool) {
	if it.judged {
		return false
	}
	it.judged = true
	if most := max(fieldInt(it.raw.Headers[headerCrashes]), suspicion); !first && it.crashes > most {
		it.attempts -= it.crashes - most
		it.crashes = most
	}
	return first && it.raw.Redelivered && s.feed.t.cfg.QueueType == Classic
}
