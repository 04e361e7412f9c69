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
)

// delivery is one message that the feed's consumer has taken: the [driver.Settler] of its hand-over.
type delivery struct {
	delivery driver.Delivery
	feed     *feed
	id       int64
	state    int         // ready, or head of a lane
	lane     int64       // its lane
	behind   []*delivery // what is handed out with it, to a relay
	headers  []byte

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
	d.feed.finished.Add(1)
	return d.feed.settlements.add(s)
}

// Poison moves the message in one statement and waits for its commit, within ctx.
func (d *delivery) Poison(ctx context.Context, fault driver.Fault) error {
	if !d.settled.CompareAndSwap(false, true) {
		return fmt.Errorf("sql: message %s: %w", d.delivery.Message.UUID, errSettled)
	}
	if err := d.poison(ctx, fault); err != nil {
		d.settled.Store(false)
		return d.feed.transport.failure(fmt.Sprintf("poison message %s of group %q", d.delivery.Message.UUID, d.feed.group.name), err)
	}
	d.feed.settlements.untrack(d)
	d.hintLane(settlement{ack: true})
	if d.feed.group.order != driver.Unordered {
		d.feed.hint()
	}
	return nil
}

func (d *delivery) poison(ctx context.Context, fault driver.Fault) error {
	headers, err := decodeHeaders(d.headers) // the handler may have changed those of the message
	if headers == nil {
		return err
	}
	fault.Record(headers)
	ctx, cancel := d.feed.transport.while(ctx)
	defer cancel()
	return d.feed.store.retry(ctx, func(ctx context.Context) error {
		return d.feed.store.poison(ctx, d.feed.group, d.feed.owner, d.id, encodeHeaders(headers))
	})
}

// hintLane tells the feed where there may be something to take, now that the head of a lane is settled.
func (d *delivery) hintLane(x settlement) {
	switch {
	case d.state != stateLaneHead || d.feed.group.order != driver.OrderedByKey:
	case x.ack:
		d.feed.lanes.settle(d.lane)
	default:
		d.feed.lanes.wait(d.id, time.Now().Add(x.after))
	}
}

// settlement is how a delivery ended.
type settlement struct {
	d     *delivery
	ack   bool
	after time.Duration // else when it comes again
	cost  int           // what is taken back of the attempt that was counted when it was taken
}

// settlements carries out how deliveries ended. While some are carried out, the next gather.
type settlements struct {
	feed    *feed
	running sync.WaitGroup
	signal  chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc

	mu      sync.Mutex
	pending []settlement
	busy    bool
	known   map[int64]*delivery // everything that was taken and is not settled in the database
	idle    []chan struct{}     // closed when nothing is pending
	closed  bool
}

func (s *settlements) init(f *feed) {
	s.feed = f
	s.signal = make(chan struct{}, 1)
	s.known = make(map[int64]*delivery)
	s.ctx, s.cancel = context.WithCancel(context.Background())
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

func (s *settlements) untrack(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(d)
}

// drop forgets a delivery; its message may have been taken again meanwhile. The caller holds s.mu.
func (s *settlements) drop(d *delivery) {
	if s.known[d.id] == d {
		delete(s.known, d.id)
	}
}

// out is how many messages are taken and not settled.
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
	// gather is how long settlements wait for more where they come quickly: it saves commits, and
	// delays nobody.
	gather = 2 * time.Millisecond
	// quickly is how many must have come together before that is worth while.
	quickly = 8
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
			if last >= quickly && s.feed.group.order == driver.Unordered && !s.awaited() {
				sleep(s.ctx, gather)
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
	err := s.feed.store.retryAlways(s.ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, statementTimeout)
		defer cancel()
		if again {
			s.feed.turn.Lock()
			defer s.feed.turn.Unlock()
		}
		err := s.write(ctx, batch)
		if err == nil {
			s.dropAll(batch)
		}
		return err
	}, func(err error) {
		s.feed.store.cfg.Logger.Warn("leat: sql: settle; trying again", "group", s.feed.group.name, "messages", len(batch), "err", err)
	})
	if err != nil {
		return
	}
	for _, x := range batch {
		if x.after > 0 {
			s.feed.delayed(x.after)
		}
		x.d.hintLane(x)
	}
	if again {
		s.feed.back.Store(true)
	}
	if again || s.feed.group.order != driver.Unordered {
		s.feed.transport.waker.group(s.feed.group.name)
	}
}

func (s *settlements) dropAll(batch []settlement) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range batch {
		s.drop(x.d)
	}
}

// write is idempotent: a message that is not this consumer's any more is left alone.
func (s *settlements) write(ctx context.Context, batch []settlement) error {
	var acked []int64
	if err := s.noteFailures(ctx, batch); err != nil {
		return err
	}
	var put [2][]int64               // by cost
	later := make(map[int][]delayed) // by state
	st, owner := s.feed.store, s.feed.owner
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
	for state, some := range later {
		if err := st.delay(ctx, st.quick, owner, state, some); err != nil {
			return err
		}
	}
	if len(acked) > 0 {
		if err := st.ack(ctx, st.quick, owner, acked); err != nil {
			return err
		}
	}
	for cost, ids := range put {
		if len(ids) > 0 {
			if err := st.put(ctx, st.quick, owner, ids, cost); err != nil {
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
			continue // unreadable, and reported when it was taken
		}
		driver.SetHistory(headers, now.History)
		all = append(all, rewritten{x.d.id, encodeHeaders(headers)})
	}
	return s.feed.store.rewrite(ctx, s.feed.store.quick, s.feed.owner, all)
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
