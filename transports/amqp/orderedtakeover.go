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

// An orderedLog is the group's log while a takeover reads it.
type orderedLog struct {
	ch    *amqp.Channel
	read  uint64 // the last delivery tag that the snapshot replaces
	ready bool
}

// takeOver reads the group's log until the takeover is ready.
func (s *orderedSession) takeOver() error {
	ch, deliveries, err := s.consumeLog()
	if err != nil {
		return err
	}
	f := s.receiver
	f.mu.Lock()
	if s.over {
		f.mu.Unlock()
		return nil
	}
	now := time.Now()
	s.log = &orderedLog{ch: ch}
	s.takeover = ordered.NewTakeover(f.config, f.memory, ids.New(), now)
	for _, msg := range s.early {
		s.takeover.Arrived(now, msg)
	}
	s.early = nil
	f.act()
	f.mu.Unlock()
	for d := range deliveries {
		s.readLog(&d)
	}
	return nil
}

// consumeLog begins to consume the log. It waits until no other session does.
func (s *orderedSession) consumeLog() (*amqp.Channel, <-chan amqp.Delivery, error) {
	const alone = true
	for began := time.Now(); ; {
		ch, err := s.conn.Channel()
		if err != nil {
			return nil, nil, err
		}
		deliveries, err := ch.Consume(keysName(s.receiver.sub.Group), "log", autoAck, alone, noLocal, noWait, nil)
		if err == nil {
			return ch, deliveries, nil
		}
		if !isCode(err, amqp.AccessRefused) && !isCode(err, amqp.ResourceLocked) {
			return nil, nil, err
		}
		if time.Since(began) > orderedPatience {
			return nil, nil, fmt.Errorf("another process still reads the group's log: %w", err)
		}
		if err := sleep(s.receiver.life, 2*lockPause); err != nil {
			return nil, nil, err
		}
	}
}

// readLog passes a record to the takeover.
func (s *orderedSession) readLog(d *amqp.Delivery) {
	f := s.receiver
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.over || s.takeover == nil {
		return
	}
	if !s.takeover.Compacts() {
		s.log.read = d.DeliveryTag
	}
	err := errors.New("not published by leat")
	if trusted(d) {
		err = s.takeover.Read(time.Now(), d.Body)
	}
	if err != nil {
		f.t.cfg.Logger.Error("leat: amqp: record skipped in the log of an ordered group", "group", f.sub.Group,
			"queue", keysName(f.sub.Group), "message_id", d.MessageId, "error", err)
	}
	f.act()
}

// lead begins to lead when no other process reads parked queues, and everything that the last leader had has arrived.
func (s *orderedSession) lead() error {
	f := s.receiver
	f.mu.Lock()
	pairs := s.takeover.Pairs()
	f.mu.Unlock()
	p := prober{conn: s.conn}
	defer p.close()
	counts := make(map[ordered.Source]int)
	for pair := 1; pair <= pairs; pair++ {
		for side := range ordered.Side(2) {
			from := ordered.Source{Pair: pair, Side: side}
			n, err := s.awaitExclusive(&p, parkedName(f.sub.Group, from))
			if err != nil {
				return err
			}
			counts[from] = n
		}
	}
	if err := s.adopt(&p); err != nil {
		return err
	}
	if _, err := s.group.ch.QueueDeclarePassive(f.queue, durable, autoDelete, exclusive, noWait, nil); err != nil {
		return err
	}
	if err := s.awaitArrivals(); err != nil {
		return err
	}
	return s.begins(counts)
}

// awaitExclusive waits until a queue has no consumer, and returns how many messages it has.
func (s *orderedSession) awaitExclusive(p *prober, queue string) (int, error) {
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
		if err := sleep(s.receiver.life, lockPause); err != nil {
			return 0, err
		}
	}
}

// awaitArrivals waits until all messages that the client library has received have been passed on.
func (s *orderedSession) awaitArrivals() error {
	f := s.receiver
	for before := -1; ; {
		f.mu.Lock()
		n := s.arrivals
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
func (s *orderedSession) begins(counts map[ordered.Source]int) error {
	f := s.receiver
	f.mu.Lock()
	log := s.log
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
	if s.over || s.stopping {
		return nil
	}
	s.machine = ordered.New(s.takeover, counts, time.Now())
	s.takeover, s.log = nil, nil
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
