package sql

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
)

// delivery is one message that the feed's consumer has taken: the [driver.Settler] of its hand-over.
type delivery struct {
	delivery    driver.Delivery
	settlements *settlements
	id          int64
	state       state       // ready, or head of its key's queue
	keyQueue    int64       // that queue
	behind      []*delivery // what is handed out with it, to a relay
	headers     []byte

	history driver.History // as it was taken
	settled atomic.Bool
}

var errSettled = errors.New("settled already")

// Ack, Redeliver and GiveBack return at once; what they ask for is carried out together with others',
// within milliseconds, and again until it succeeds.

func (d *delivery) Ack() error { return d.settle(settlement{d: d, ack: true}) }

func (d *delivery) Redeliver(after time.Duration) error {
	return d.settle(settlement{d: d, after: after})
}

func (d *delivery) GiveBack(after time.Duration) error {
	return d.settle(settlement{d: d, after: after, cost: 1})
}

func (d *delivery) settle(s settlement) error {
	if !d.settled.CompareAndSwap(false, true) {
		return fmt.Errorf("sql: message %s: %w", d.delivery.Message.UUID, errSettled)
	}
	d.settlements.finished.Add(1)
	return d.settlements.add(s)
}

// Poison moves the message in one statement and waits for its commit, within ctx.
func (d *delivery) Poison(ctx context.Context, fault driver.Fault) error {
	if !d.settled.CompareAndSwap(false, true) {
		return fmt.Errorf("sql: message %s: %w", d.delivery.Message.UUID, errSettled)
	}
	if err := d.settlements.poison(ctx, d, fault); err != nil {
		d.settled.Store(false)
		return failure(fmt.Sprintf("poison message %s of group %q", d.delivery.Message.UUID, d.delivery.Group), err)
	}
	return nil
}

// settlement is how a delivery ended.
type settlement struct {
	d     *delivery
	ack   bool
	after time.Duration // else when it is redelivered
	cost  int           // what is taken back of the attempt that was counted when it was taken
}

// settlements carries out how a feed's deliveries ended. While some are carried out, the next gather.
//
// turn is held while the fetcher takes messages, and while some are given back: else a message that was given back
// could be taken again while it is still known here. mu is taken within it, and never held during a statement.
type settlements struct {
	core     *core
	consumer *consumer
	running  sync.WaitGroup
	signal   chan struct{}
	ctx      context.Context
	cancel   context.CancelFunc
	turn     sync.Mutex

	// For the fetcher.
	finished atomic.Int64 // deliveries settled so far
	back     atomic.Bool  // messages came back to the group
	dueAt    atomic.Int64 // when a message is redelivered that was delayed here, in Unix nanoseconds; 0 for none
	keys     keyHints     // in groups that are ordered by key

	mu      sync.Mutex
	pending []settlement
	busy    bool
	known   map[int64]*delivery // everything that was taken and is not settled in the database
	idle    []chan struct{}     // closed when nothing is pending
	closed  bool
}

func newSettlements(shared *core, of *consumer) *settlements {
	s := &settlements{core: shared, consumer: of, signal: make(chan struct{}, 1), known: make(map[int64]*delivery)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// track enters a delivery, and reports whether its message was not in hand already.
func (s *settlements) track(d *delivery) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[d.id] != nil {
		return false
	}
	s.known[d.id] = d
	return true
}

// drop forgets deliveries; their messages may have been taken again meanwhile.
func (s *settlements) drop(all ...*delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range all {
		if s.known[d.id] == d {
			delete(s.known, d.id)
		}
	}
}

// out returns how many messages are taken and not settled.
func (s *settlements) out() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known)
}

// unknown leaves out the messages that were taken.
func (s *settlements) unknown(ids []int64) (unknown []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.known[id] == nil {
			unknown = append(unknown, id)
		}
	}
	return unknown
}

func (s *settlements) add(settled settlement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return driver.ErrClosed
	}
	s.pending = append(s.pending, settled)
	if len(s.pending) == 1 && !s.busy {
		wake(s.signal)
	}
	return nil
}

const (
	// flushInterval is how long settlements wait for more if they come quickly: it saves commits, and
	// delays nobody.
	flushInterval = 2 * time.Millisecond
	// minBatch is how many must have come together before that is worth while.
	minBatch = 8
)

func (s *settlements) run() {
	last := 0
	for {
		select {
		case <-s.signal:
		case <-s.ctx.Done():
			return
		}
		for {
			if last >= minBatch && s.consumer.group.order == driver.Unordered && !s.awaited() {
				backoff.Sleep(s.ctx, flushInterval)
			}
			batch := s.take()
			if last = len(batch); last == 0 {
				break
			}
			s.carryOut(batch)
		}
	}
}

// take returns what is pending, nil for nothing. A batch is bounded, as a statement should be.
func (s *settlements) take() (batch []settlement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.pending), 2000)
	batch, s.pending = s.pending[:n:n], s.pending[n:]
	s.busy = n > 0
	if n > 0 {
		return batch
	}
	for _, idle := range s.idle {
		close(idle)
	}
	s.idle, s.pending = nil, nil
	return nil
}

func (s *settlements) awaited() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.idle) > 0
}

// carryOut tries until it succeeds or the feed ends.
func (s *settlements) carryOut(batch []settlement) {
	again := slices.ContainsFunc(batch, func(x settlement) bool { return !x.ack })
	err := s.core.retryAlways(s.ctx, func(ctx context.Context) error { return s.try(ctx, batch, again) }, func(err error) {
		s.core.cfg.Logger.Warn("leat: sql: settle failed", "group", s.consumer.group.name, "messages", len(batch), "error", err)
	})
	if err != nil {
		return
	}
	for _, x := range batch {
		if x.after > 0 {
			s.delayed(x.after)
		}
		s.hintKey(x)
	}
	if again {
		s.back.Store(true)
	}
	if again || s.consumer.group.order != driver.Unordered {
		s.core.waker.group(s.consumer.group.name)
	}
}

// try carries out a batch once; again says that some of its messages are given back.
func (s *settlements) try(ctx context.Context, batch []settlement, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if again {
		s.turn.Lock()
		defer s.turn.Unlock()
	}
	if err := s.write(ctx, batch); err != nil {
		return err
	}
	done := make([]*delivery, len(batch))
	for i, x := range batch {
		done[i] = x.d
	}
	s.drop(done...)
	return nil
}

// delayed notes that a message is redelivered then.
func (s *settlements) delayed(after time.Duration) {
	at := time.Now().Add(after).UnixNano()
	for {
		known := s.dueAt.Load()
		if known != 0 && known <= at {
			return
		}
		if s.dueAt.CompareAndSwap(known, at) {
			s.consumer.poke()
			return
		}
	}
}

// hintKey tells the fetcher where there may be something to take, now that the head of a key's queue is settled.
func (s *settlements) hintKey(x settlement) {
	switch {
	case x.d.state != stateKeyHead || s.consumer.group.order != driver.OrderedByKey:
	case x.ack:
		s.keys.settle(x.d.keyQueue)
	default:
		s.keys.wait(keyHead{x.d.keyQueue, x.d.id}, time.Now().Add(x.after))
	}
}

// poison moves a message to the poison queue, and lets go of it. Headers that can't be read stay as they are, and
// are the fault themselves.
func (s *settlements) poison(ctx context.Context, d *delivery, fault driver.Fault) error {
	kept := d.headers
	if headers, err := decodeHeaders(d.headers); err == nil { // the handler may have changed those of the message
		fault.Record(headers)
		kept = s.core.encodeHeaders(headers)
	}
	ctx, cancel := s.core.while(ctx)
	defer cancel()
	err := s.core.retry(ctx, func(ctx context.Context) error {
		return s.core.poison.set(ctx, s.consumer.group, s.consumer.id, d.id, kept)
	})
	if err != nil {
		return err
	}
	s.drop(d)
	s.hintKey(settlement{d: d, ack: true})
	if s.consumer.group.order != driver.Unordered {
		s.consumer.hint()
	}
	return nil
}

// write may be repeated: a message that is not this consumer's any more is left alone.
func (s *settlements) write(ctx context.Context, batch []settlement) error {
	var acked []int64
	if err := s.noteFailures(ctx, batch); err != nil {
		return err
	}
	var put [2][]int64 // by cost
	later := make(map[state][]delayed)
	cl, owner := s.core.claims, s.consumer.id
	for _, x := range batch {
		switch {
		case x.ack:
			acked = append(acked, x.d.id)
		case x.after <= 0:
			put[x.cost] = append(put[x.cost], x.d.id)
		default:
			later[x.d.state] = append(later[x.d.state], delayed{x.d.id, x.after, x.d.delivery.Attempt - x.cost})
		}
	}
	for was, some := range later {
		if err := cl.delay(ctx, cl.relaxed, owner, was, some); err != nil {
			return err
		}
	}
	if len(acked) > 0 {
		if err := cl.ack(ctx, cl.relaxed, owner, acked); err != nil {
			return err
		}
	}
	for cost, ids := range put {
		if len(ids) > 0 {
			if err := cl.put(ctx, cl.relaxed, owner, ids, cost); err != nil {
				return err
			}
		}
	}
	return nil
}

// noteFailures keeps with a message how often and since when its handler has failed with it, while it is still
// this consumer's.
func (s *settlements) noteFailures(ctx context.Context, batch []settlement) error {
	var all []rewritten
	for _, x := range batch {
		now := &x.d.delivery
		if x.ack || now.History == x.d.history {
			continue
		}
		headers, err := decodeHeaders(x.d.headers)
		if err != nil {
			continue // it was never handed out
		}
		driver.SetHistory(headers, now.History)
		all = append(all, rewritten{x.d.id, s.core.encodeHeaders(headers)})
	}
	return s.core.claims.rewrite(ctx, s.core.relaxed, s.consumer.id, all)
}

// flush waits until everything is carried out that was settled.
func (s *settlements) flush(ctx context.Context) error {
	s.mu.Lock()
	if len(s.pending) == 0 && !s.busy {
		s.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	s.idle = append(s.idle, idle)
	wake(s.signal)
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close gives back what nobody has settled, carries everything out, and ends. The attempt counts:
// somebody has begun to handle it.
func (s *settlements) close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	for _, d := range s.known {
		if d.settled.CompareAndSwap(false, true) {
			s.pending = append(s.pending, settlement{d: d})
		}
	}
	s.mu.Unlock()
	err := s.flush(ctx)
	s.cancel()
	s.running.Wait()
	return err
}
