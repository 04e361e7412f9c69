package amqp

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/transports/internal/ordered"
)

const (
	// orderedPatience is how long a step of a takeover, or the start of a pass, may take.
	orderedPatience = 30 * time.Second
	// settlePatience is how long a session that stops waits for the broker.
	settlePatience = 10 * time.Second
	// beatEvery is how often a process checks whether it stood still.
	beatEvery = 200 * time.Millisecond
)

// An orderedSession is what a process does for an ordered group while it has one connection, until that is lost or closed.
//
// The receiver's mu guards the state below. With mu locked, the session publishes and acks, which never waits for the broker.
// Requests that wait for an answer are made by goroutines without mu, which end when the connection is closed.
type orderedSession struct {
	*orderedConn
	publisher orderedPublisher
	bodies    orderedBodies
	election  orderedElection
	group     *orderedConsumer
	timer     *time.Timer

	// Guarded by the receiver's mu:
	over     bool
	machine  *ordered.Machine // nil until the session leads
	tags     ordered.Tag
	items    map[ordered.Tag]*orderedItem // that are not acked
	passes   map[ordered.Source]*orderedConsumer
	nextTick time.Time
	beat     time.Time
	stopping bool
	deadline *time.Timer   // of a session that stops
	why      error         // the reason why it stops
	stopped  chan struct{} // closed when it has
}

var errRenew = errors.New("the log of the group is long, and will be compacted")

// serve runs one session. It returns the error with which the session has ended.
func (f *orderedReceiver) serve(declared bool) error {
	conn, err := newOrderedConn(f)
	if err != nil {
		return err
	}
	s := &orderedSession{
		orderedConn: conn, timer: time.NewTimer(time.Hour),
		items:  make(map[ordered.Tag]*orderedItem),
		passes: make(map[ordered.Source]*orderedConsumer), beat: time.Now(), stopped: make(chan struct{}),
	}
	s.election = orderedElection{s: s, elected: make(chan struct{}, 1)}
	s.publisher = orderedPublisher{s: s, some: make(chan struct{}, 1)}
	s.bodies = orderedBodies{s: s, spill: spill{create: f.t.createSpill}}
	defer s.close()
	// Closing the connection ends a call that waits for an answer.
	defer context.AfterFunc(f.life, func() { _ = conn.conn.CloseDeadline(time.Now().Add(lastWords)) })()
	if err := s.begin(declared); err != nil {
		return err
	}
	return s.run()
}

// begin opens the channels and consumes the group's queue.
func (s *orderedSession) begin(declared bool) (err error) {
	f := s.receiver
	s.watchConnection()
	if !declared {
		if err := s.declare(); err != nil {
			return err
		}
	}
	if err := s.publisher.open(); err != nil {
		return err
	}
	if err := (legacyGroup{s}).awaitToken(); err != nil {
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

// declare declares again what the group needs.
func (s *orderedSession) declare() error {
	ch, err := s.conn.Channel()
	if err != nil {
		return err
	}
	defer closeQuietly(ch)
	t := s.receiver.t.topology
	if err := t.declareShared(ch); err != nil {
		return err
	}
	for _, set := range t.allLevels() {
		if err := set.declare(s.receiver.open, t.declarer(ch)); err != nil {
			return err
		}
	}
	return t.subscribe(ch, s.receiver.sub)
}

// bind declares the bindings again, because deleting an exchange deletes its bindings.
func (s *orderedSession) bind() error {
	ch, err := s.conn.Channel()
	if err != nil {
		return err
	}
	defer closeQuietly(ch)
	d := s.receiver.t.topology.declarer(ch)
	s.receiver.t.topology.declareExchange(d)
	s.receiver.t.topology.bindGroup(d, s.receiver.sub)
	return d.err
}

// run blocks until the session has ended, and returns the reason.
func (s *orderedSession) run() error {
	f := s.receiver
	assert, beat := time.NewTimer(f.t.topology.assertAfter()), time.NewTicker(beatEvery)
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
			f.t.active.Add(1) // Close also waits for the last acks
			defer f.t.active.Add(-1)
			f.mu.Lock()
			s.stop()
			f.mu.Unlock()
			f.release()
		case <-s.stopped:
			return s.finish()
		case <-s.election.elected:
			s.try(s.election.takeOver)
		case <-assert.C:
			assert.Reset(f.t.topology.assertAfter())
			s.try(s.bind)
		case <-beat.C:
			f.mu.Lock()
			s.checkStall(time.Now())
			f.mu.Unlock()
		case <-s.timer.C:
			s.advance()
		}
	}
}

// advance passes the time on to the machine. A session that does not lead sends ticks.
func (s *orderedSession) advance() {
	f := s.receiver
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
		s.nextTick = now.Add(f.idleTick())
		s.publisher.publish(0, controlMessage(f.queue, ordered.ControlTick, f.config.Process, "", ordered.Name{}))
	}
	f.act()
}

// arm sets the timer for the next call of advance.
func (s *orderedSession) arm(now time.Time) {
	next := s.nextTick
	if s.machine != nil {
		next = s.machine.Next()
	}
	s.timer.Reset(min(max(next.Sub(now), 0), s.receiver.config.Tick/2))
}

// checkStall checks whether the process stood still for so long that the broker may have closed its connection. It uses both
// clocks: the monotonic one stops while the computer sleeps, and the other may be set.
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

// stop lets workers settle what they have. Nothing is handed out any more.
func (s *orderedSession) stop() {
	if s.stopping || s.over {
		return
	}
	s.stopping = true
	if s.machine != nil {
		now := time.Now()
		var seen []ordered.Tag
		for _, it := range s.receiver.ready {
			if it.seen { // its attempt is counted only in this process
				seen = append(seen, it.tag)
			}
		}
		s.machine.Stop(now)
		for _, tag := range seen {
			s.machine.Failed(now, tag, 0)
		}
	}
	s.receiver.ready = nil
	s.receiver.act()
}

// checkStopped ends a session that stops when everything is settled.
func (s *orderedSession) checkStopped() {
	if !s.stopping || s.receiver.out > 0 {
		return
	}
	if s.machine == nil || s.machine.Settled() {
		s.end()
		return
	}
	if s.deadline == nil { // a fence can't return behind too much that is not settled
		s.deadline = time.AfterFunc(settlePatience, func() {
			s.receiver.mu.Lock()
			defer s.receiver.mu.Unlock()
			s.end()
		})
	}
}

// finish makes sure that the broker has the acks: a channel of a quorum queue delays acks while 32 wait for the disk, and drops
// them when it is closed. The queue confirms a consumer only after it has processed them.
func (s *orderedSession) finish() error {
	s.receiver.mu.Lock()
	consumers := s.consumers()
	s.receiver.mu.Unlock()
	recent := 0
	for _, c := range consumers {
		c.acks.hurry()
		recent += c.acks.recent()
	}
	if recent == 0 || s.receiver.t.cfg.QueueType == Classic || s.machine == nil {
		return s.why
	}
	tag := s.receiver.sub.Group + "-last"
	if _, err := s.group.ch.Consume(s.receiver.queue, tag, autoAck, exclusive, noLocal, noWait, nil); err != nil {
		return err
	}
	if err := s.group.ch.Cancel(tag, noWait); err != nil {
		return err
	}
	if len(consumers) > 1 && recent >= pace {
		return sleep(s.receiver.life, ackMemory)
	}
	return s.why
}

// consumers returns the consumers of the group's queue and of parked queues.
func (s *orderedSession) consumers() (all []*orderedConsumer) {
	if s.group != nil {
		all = append(all, s.group)
	}
	return slices.AppendSeq(all, maps.Values(s.passes))
}

// end ends the session for the receiver and the machine. close closes its connection then.
func (s *orderedSession) end() {
	if s.over {
		return
	}
	s.over = true
	f := s.receiver
	var out []ordered.Tag
	for tag, it := range s.items {
		switch {
		case it.out:
			out = append(out, tag)
		case it.raw.Headers[headerControl] == nil:
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
	s.bodies.spill.close()
	s.publisher.queue = nil
	close(s.stopped)
}

// close closes the connection, and waits for the session's goroutines.
func (s *orderedSession) close() {
	s.receiver.mu.Lock()
	s.end()
	s.timer.Stop()
	if s.deadline != nil {
		s.deadline.Stop()
	}
	consumers := s.consumers()
	s.receiver.mu.Unlock()
	for _, c := range consumers {
		c.acks.end()
	}
	_ = s.conn.CloseDeadline(time.Now().Add(lastWords))
	s.work.Wait()
}

// pump passes deliveries to arrive until the consumer ends.
func (s *orderedSession) pump(c *orderedConsumer, deliveries <-chan amqp.Delivery) {
	s.work.Go(func() {
		for d := range deliveries {
			_ = s.wire.room(s.receiver.life) // a large copy is written first; a closed connection has room
			s.arrive(c, &d)
		}
	})
}

// arrive handles a delivery of the broker.
func (s *orderedSession) arrive(c *orderedConsumer, d *amqp.Delivery) {
	f := s.receiver
	it := newOrderedItem(s, c, d)
	toFile := false
	f.mu.Lock()
	if !s.over {
		s.take(it)
		f.act()
		toFile = s.bodies.keep(it)
	}
	f.mu.Unlock()
	if toFile {
		s.bodies.toFile(it)
	}
	s.wire.meter.release(c.taken, d.DeliveryTag)
}

// take passes a delivery to the election or the machine.
func (s *orderedSession) take(it *orderedItem) {
	now := time.Now()
	if it.raw.Headers[headerControl] == nil {
		s.receiver.unseen.correct(&it.received)
	}
	s.tags++
	it.tag = s.tags
	s.items[it.tag] = it
	msg := it.message()
	if s.machine != nil {
		s.machine.Arrived(now, it.from.from, msg)
	} else {
		s.election.arrived(now, msg)
	}
}

// countDelivery corrects a message's count of crashes, once. The broker counts a crash for every message that the process had
// fetched, not only for the one that ended it. A suspect is handed out alone, so after a crash it is the first to be
// redelivered, and its count is right. The count of any other message is limited to that of a suspect, or that of its header. A
// classic queue does not count; countDelivery returns true if the message must be published once with the count in a header.
func (s *orderedSession) countDelivery(it *orderedItem, first bool) (sendAway bool) {
	if it.checked {
		return false
	}
	it.checked = true
	if most := max(fieldInt(it.raw.Headers[headerCrashes]), suspicion); !first && it.crashes > most {
		it.attempts -= it.crashes - most
		it.crashes = most
	}
	return first && it.raw.Redelivered && s.receiver.t.cfg.QueueType == Classic
}
