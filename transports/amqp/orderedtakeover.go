package amqp

import (
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

// This file has the steps with which a session takes the lead, and reads parked queues.

// An orderedElection makes a session the leader of its group. It begins when the broker delivers the first message of the group's
// queue, which makes the session's consumer the active one. Then the session reads the group's log into a takeover, waits until no
// other session reads parked queues, and makes a machine of the takeover.
//
// The receiver's mu guards all fields but s and elected.
type orderedElection struct {
	s        *orderedSession
	elected  chan struct{}      // the first message has arrived; buffer of one
	early    []*ordered.Message // arrived before the takeover
	takeover *ordered.Takeover  // nil before the log is read, and after the election
	log      *orderedLog        // while the takeover reads it
	arrivals int                // messages from the group's queue
}

// arrived passes on a message of the group's queue.
func (e *orderedElection) arrived(now time.Time, msg *ordered.Message) {
	e.arrivals++
	if e.takeover != nil {
		e.takeover.Arrived(now, msg)
		return
	}
	e.early = append(e.early, msg)
	if len(e.early) == 1 {
		e.elected <- struct{}{}
	}
}

// leadIfReady begins the last step, once.
func (e *orderedElection) leadIfReady() {
	if e.log != nil && e.takeover != nil && e.takeover.Ready() && !e.log.ready {
		e.log.ready = true
		e.s.try(e.lead)
	}
}

// An orderedLog is the group's log while a takeover reads it.
type orderedLog struct {
	ch    *amqp.Channel
	read  uint64 // the last delivery tag that the snapshot replaces
	ready bool
}

// takeOver reads the group's log until the takeover is ready.
func (e *orderedElection) takeOver() error {
	ch, deliveries, err := e.consumeLog()
	if err != nil {
		return err
	}
	f := e.s.receiver
	f.mu.Lock()
	if e.s.over {
		f.mu.Unlock()
		return nil
	}
	now := time.Now()
	e.log = &orderedLog{ch: ch}
	e.takeover = ordered.NewTakeover(f.config, f.memory, ids.New(), now)
	for _, msg := range e.early {
		e.takeover.Arrived(now, msg)
	}
	e.early = nil
	f.act()
	f.mu.Unlock()
	for d := range deliveries {
		e.readLog(&d)
	}
	return nil
}

// consumeLog begins to consume the log. It waits until no other session does.
func (e *orderedElection) consumeLog() (*amqp.Channel, <-chan amqp.Delivery, error) {
	const alone = true
	for began := time.Now(); ; {
		ch, err := e.s.conn.Channel()
		if err != nil {
			return nil, nil, err
		}
		deliveries, err := ch.Consume(keysName(e.s.receiver.sub.Group), "log", autoAck, alone, noLocal, noWait, nil)
		if err == nil {
			return ch, deliveries, nil
		}
		if !isCode(err, amqp.AccessRefused) && !isCode(err, amqp.ResourceLocked) {
			return nil, nil, err
		}
		if time.Since(began) > orderedPatience {
			return nil, nil, fmt.Errorf("another process still reads the group's log: %w", err)
		}
		if err := sleep(e.s.receiver.life, 2*lockPause); err != nil {
			return nil, nil, err
		}
	}
}

// readLog passes a record to the takeover.
func (e *orderedElection) readLog(d *amqp.Delivery) {
	f := e.s.receiver
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.s.over || e.takeover == nil {
		return
	}
	if !e.takeover.Compacts() {
		e.log.read = d.DeliveryTag
	}
	err := errors.New("not published by leat")
	if trusted(d) {
		err = e.takeover.Read(time.Now(), d.Body)
	}
	if err != nil {
		f.t.cfg.Logger.Error("leat: amqp: record skipped in the log of an ordered group", "group", f.sub.Group,
			"queue", keysName(f.sub.Group), "message_id", d.MessageId, "error", err)
	}
	f.act()
}

// lead begins to lead when no other process reads parked queues, and everything that the last leader had has arrived.
func (e *orderedElection) lead() error {
	f := e.s.receiver
	f.mu.Lock()
	pairs := e.takeover.Pairs()
	f.mu.Unlock()
	p := prober{conn: e.s.conn}
	defer p.close()
	counts := make(map[ordered.Source]int)
	for pair := 1; pair <= pairs; pair++ {
		for side := range ordered.Side(2) {
			from := ordered.Source{Pair: pair, Side: side}
			n, err := e.s.awaitExclusive(&p, parkedName(f.sub.Group, from))
			if err != nil {
				return err
			}
			counts[from] = n
		}
	}
	if err := (legacyGroup{e.s}).adopt(&p); err != nil {
		return err
	}
	if _, err := e.s.group.ch.QueueDeclarePassive(f.queue, durable, autoDelete, exclusive, noWait, nil); err != nil {
		return err
	}
	if err := e.awaitArrivals(); err != nil {
		return err
	}
	return e.begins(counts)
}

// awaitArrivals waits until all messages that the client library has received have been passed on.
func (e *orderedElection) awaitArrivals() error {
	f := e.s.receiver
	for before := -1; ; {
		f.mu.Lock()
		n := e.arrivals
		f.mu.Unlock()
		if n == before {
			return nil
		}
		before = n
		if err := sleep(f.life, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

// begins begins to lead. It acks the records of the log that the snapshot replaces.
func (e *orderedElection) begins(counts map[ordered.Source]int) error {
	f := e.s.receiver
	f.mu.Lock()
	log := e.log
	f.mu.Unlock()
	if log.read > 0 {
		if err := log.ch.Ack(log.read, upTo); err != nil {
			return err
		}
	}
	if err := log.ch.Cancel("log", noWait); err != nil {
		return err
	}
	closeQuietly(log.ch)
	f.mu.Lock()
	defer f.mu.Unlock()
	if e.s.over || e.s.stopping {
		return nil
	}
	e.s.machine = ordered.New(e.takeover, counts, time.Now())
	e.takeover, e.log = nil, nil
	f.t.cfg.Logger.Debug("leat: amqp: this process leads the group", "group", f.sub.Group)
	f.act()
	return nil
}

// passPrefetch is how many parked messages a pass fetches ahead.
const passPrefetch = 100

// startPass consumes a parked queue.
func (s *orderedSession) startPass(from ordered.Source) error {
	f := s.receiver
	p := prober{conn: s.conn}
	defer p.close()
	queue := parkedName(f.sub.Group, from)
	if _, err := s.awaitExclusive(&p, queue); err != nil {
		return err
	}
	const alone = true
	c, deliveries, err := s.consume(from, queue, passPrefetch, alone)
	if err != nil {
		return err
	}
	other := parkedName(f.sub.Group, ordered.Source{Pair: from.Pair, Side: 1 - from.Side})
	q, there, err := p.queue(other)
	switch {
	case err != nil:
		return err
	case !there:
		return &missingQueueError{other}
	}
	f.mu.Lock()
	old := s.passes[from]
	if s.over {
		f.mu.Unlock()
		return nil
	}
	s.passes[from] = c
	s.machine.PassStarted(time.Now(), from.Pair, q.Messages == 0)
	f.act()
	f.mu.Unlock()
	if old != nil {
		old.acks.end()
		closeQuietly(old.ch)
	}
	s.pump(c, deliveries)
	return nil
}

// endPass cancels the consumer of a parked queue, and keeps its channel open: the broker drops acks of a channel that is closed
// soon after them.
func (s *orderedSession) endPass(from ordered.Source) {
	c := s.passes[from]
	s.try(func() error {
		c.acks.hurry()
		return c.ch.Cancel(c.tag, noWait)
	})
}
