package queue

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
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A Delivery is a message that the receiver has claimed. It is the [driver.Settler] of its delivery.
type Delivery struct {
	Delivery    driver.Delivery
	ID          int64 // of its row
	settlements *settlements
	state       database.State // ready, or head of its key's queue
	keyQueue    int64          // the number of that queue
	behind      []*Delivery    // the rest of its bundle, for a relay
	size        int64          // in bytes, for the limit of the receiver's buffer
	headers     []byte

	history driver.History // as claimed
	settled atomic.Bool
}

var errSettled = errors.New("settled already")

// Ack implements [driver.Settler]. Like Redeliver and GiveBack it returns at once: they are written in batches within milliseconds, and
// retried until they succeed. They return an error if the delivery is already settled or the receiver is closed.
func (d *Delivery) Ack() error { return d.settle(settlement{d: d, ack: true}) }

// Redeliver implements [driver.Settler].
func (d *Delivery) Redeliver(after time.Duration) error {
	return d.settle(settlement{d: d, after: after})
}

// GiveBack implements [driver.Settler].
func (d *Delivery) GiveBack(after time.Duration) error {
	return d.settle(settlement{d: d, after: after, cost: 1})
}

func (d *Delivery) settle(s settlement) error {
	if !d.settled.CompareAndSwap(false, true) {
		return fmt.Errorf("sql: message %s: %w", d.messageID(), errSettled)
	}
	d.settlements.finished.Add(1)
	s.d = d.withoutMessage()
	return d.settlements.add(d, s)
}

// messageID returns the message's id for errors. Any program may have written it, in any length.
func (d *Delivery) messageID() string {
	return driver.OneLine(d.Delivery.Message.UUID, driver.MaxClassBytes)
}

// withoutMessage returns what writing a settlement needs. The message may be large, and the database slow.
func (d *Delivery) withoutMessage() *Delivery {
	rest := &Delivery{ID: d.ID, state: d.state, keyQueue: d.keyQueue, history: d.history}
	rest.Delivery.Attempt, rest.Delivery.History = d.Delivery.Attempt, d.Delivery.History
	if rest.Delivery.History != d.history {
		rest.headers = d.headers
	}
	rest.settled.Store(true)
	return rest
}

// Poison moves the message to the poison queue. It blocks until that is committed or ctx is done. After an error, the delivery can be
// settled again.
func (d *Delivery) Poison(ctx context.Context, fault driver.Fault) error {
	if !d.settled.CompareAndSwap(false, true) {
		return fmt.Errorf("sql: message %s: %w", d.messageID(), errSettled)
	}
	if err := d.settlements.poison(ctx, d, fault); err != nil {
		d.settled.Store(false)
		return failure(fmt.Sprintf("poison message %s of group %q", d.messageID(), d.Delivery.Group), err)
	}
	return nil
}

// A settlement describes how a delivery was settled.
type settlement struct {
	d     *Delivery
	ack   bool
	after time.Duration // until it is redelivered, if it is not acked
	cost  int           // 1 if the attempt, which the claim has counted, is subtracted; else 0
}

// settlements writes how a receiver's deliveries were settled. While one batch is written, the next one is collected.
//
// claimLock is held while the fetcher claims messages, and while some are given back. Otherwise a message that was given back could be
// claimed again while it is still in known. mu may be locked while claimLock is held, but not the other way round.
type settlements struct {
	core      *core
	consumer  *consumer
	running   sync.WaitGroup
	signal    chan struct{}
	ctx       context.Context
	cancel    context.CancelFunc
	claimLock sync.Mutex

	// Read by the fetcher.
	finished atomic.Int64 // deliveries settled so far
	back     atomic.Bool  // messages came back to the group
	dueAt    atomic.Int64 // when a message is redelivered that was delayed here, in Unix nanoseconds; 0 for none
	keys     keyHints     // in groups that are ordered by key

	mu      sync.Mutex
	pending []settlement
	busy    bool
	known   map[int64]*Delivery // all messages that are claimed and whose settlement is not written
	idle    []chan struct{}     // closed when nothing is pending
	closed  bool
}

func newSettlements(shared *core, of *consumer) *settlements {
	s := &settlements{core: shared, consumer: of, signal: make(chan struct{}, 1), known: make(map[int64]*Delivery)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// track adds a delivery. It reports whether the receiver did not have its message already.
func (s *settlements) track(d *Delivery) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[d.ID] != nil {
		return false
	}
	s.known[d.ID] = d
	return true
}

// drop removes deliveries; their messages may have been claimed again meanwhile.
func (s *settlements) drop(all ...*Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range all {
		if s.known[d.ID] == d {
			delete(s.known, d.ID)
		}
	}
}

// out returns how many messages are claimed and not settled.
func (s *settlements) out() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known)
}

// unknown returns those of the messages that the receiver has not claimed.
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

// add adds the settlement of a delivery, whose message is not needed any more.
func (s *settlements) add(d *Delivery, settled settlement) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return driver.ErrClosed
	}
	if s.known[d.ID] == d {
		s.known[d.ID] = settled.d
	}
	s.pending = append(s.pending, settled)
	if len(s.pending) == 1 && !s.busy {
		wake(s.signal)
	}
	return nil
}

const (
	// flushInterval is how long settlements wait for more if they arrive quickly. It saves commits.
	flushInterval = 2 * time.Millisecond
	// minBatch is the size of a batch from which the next one waits for more settlements.
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

// take returns the pending settlements, nil if there are none. A batch is bounded, because statements should be.
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

// carryOut writes a batch. It retries until it succeeds or the receiver is closed.
func (s *settlements) carryOut(batch []settlement) {
	again := slices.ContainsFunc(batch, func(x settlement) bool { return !x.ack })
	err := s.core.RetryAlways(s.ctx, func(ctx context.Context) error { return s.try(ctx, batch, again) }, func(err error) {
		s.core.Config.Logger.Warn("leat: sql: settle failed", "group", s.consumer.group.name, "messages", len(batch), "error", err)
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

// try writes a batch once. again says that some of its messages are given back.
func (s *settlements) try(ctx context.Context, batch []settlement, again bool) error {
	ctx, cancel := context.WithTimeout(ctx, database.StatementTimeout)
	defer cancel()
	if again {
		s.claimLock.Lock()
		defer s.claimLock.Unlock()
	}
	if err := s.write(ctx, batch); err != nil {
		return err
	}
	done := make([]*Delivery, len(batch))
	for i, x := range batch {
		done[i] = x.d
	}
	s.drop(done...)
	return nil
}

// delayed records when a message is redelivered.
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

// hintKey gives the fetcher a hint that a message of a key queue may be claimed, since the queue's head is settled.
func (s *settlements) hintKey(x settlement) {
	switch {
	case x.d.state != database.StateKeyHead || s.consumer.group.order != driver.OrderedByKey:
	case x.ack:
		s.keys.settle(x.d.keyQueue)
	default:
		s.keys.wait(keyHead{x.d.keyQueue, x.d.ID}, time.Now().Add(x.after))
	}
}

// poison moves a message to the poison queue and drops its delivery. Headers that can't be decoded are the reason for the fault, and
// stay as they are.
func (s *settlements) poison(ctx context.Context, d *Delivery, fault driver.Fault) error {
	kept := d.headers
	if headers, err := decodeHeaders(d.headers); err == nil { // not the message's headers, which the handler may have changed
		fault.Record(headers)
		kept = encodeHeaders(headers, s.core.JSON)
	}
	ctx, cancel := s.core.while(ctx)
	defer cancel()
	err := s.core.Retry(ctx, func(ctx context.Context) error {
		return s.core.poison.set(ctx, s.consumer.group, s.consumer.id, d.ID, kept)
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

// write writes a batch. It may be repeated: it does not change messages that another consumer has claimed meanwhile.
func (s *settlements) write(ctx context.Context, batch []settlement) error {
	var acked []int64
	if err := s.writeFailures(ctx, batch); err != nil {
		return err
	}
	var put [2][]int64 // by cost
	later := make(map[database.State][]delayed)
	cl, owner := s.core.claims, s.consumer.id
	for _, x := range batch {
		switch {
		case x.ack:
			acked = append(acked, x.d.ID)
		case x.after <= 0:
			put[x.cost] = append(put[x.cost], x.d.ID)
		default:
			later[x.d.state] = append(later[x.d.state], delayed{x.d.ID, x.after, x.d.Delivery.Attempt - x.cost})
		}
	}
	for was, some := range later {
		if err := cl.delay(ctx, cl.Relaxed, owner, was, some); err != nil {
			return err
		}
	}
	if len(acked) > 0 {
		if err := cl.ack(ctx, cl.Relaxed, owner, acked); err != nil {
			return err
		}
	}
	for cost, ids := range put {
		if len(ids) > 0 {
			if err := cl.put(ctx, cl.Relaxed, owner, ids, cost); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeFailures writes the history of the messages that were not acked, if the handler's failure has changed it. The consumer still owns
// them.
func (s *settlements) writeFailures(ctx context.Context, batch []settlement) error {
	var all []rewritten
	for _, x := range batch {
		now := &x.d.Delivery
		if x.ack || now.History == x.d.history {
			continue
		}
		headers, err := decodeHeaders(x.d.headers)
		if err != nil {
			continue // it was never delivered
		}
		driver.SetHistory(headers, now.History)
		all = append(all, rewritten{x.d.ID, encodeHeaders(headers, s.core.JSON)})
	}
	return s.core.claims.rewrite(ctx, s.core.Relaxed, s.consumer.id, all)
}

// flush blocks until all settlements are written.
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

// close gives back all unsettled messages, writes all settlements, and stops run. It counts the attempts, because handlers have
// started.
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
