package queue

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A receiver delivers one group's messages. One goroutine, the fetcher, claims them from the database into a buffer; another one
// writes how they were settled.
type receiver struct {
	*consumer
	core         *core
	singleWorker bool // it has one worker

	buffer  chan *Delivery
	waiting atomic.Int32 // calls of Next that found the buffer empty
	handed  atomic.Int64 // deliveries that left the buffer so far
	pushed  atomic.Int64 // deliveries put into the buffer so far
	bytes   atomic.Int64 // size of the messages in the buffer

	settlements *settlements
	bundle      int // for relays: how many messages to claim and deliver at once; 0 means one by one

	ctx      context.Context // ends when the receiver closes
	cancel   context.CancelFunc
	talking  context.Context // for statements of the fetcher; ends later than ctx, when Close stops waiting for them
	hangUp   context.CancelFunc
	fetching sync.WaitGroup
	closing  sync.Once
	closeErr error
}

func newReceiver(shared *core, of *consumer, s driver.Subscription) *receiver {
	f := &receiver{
		consumer:     of,
		core:         shared,
		singleWorker: s.Concurrency == 1,
		buffer:       make(chan *Delivery, shared.Config.Prefetch+s.Concurrency),
		settlements:  newSettlements(shared, of),
	}
	f.ctx, f.cancel = context.WithCancel(shared.ctx)
	f.talking, f.hangUp = context.WithCancel(shared.ctx)
	return f
}

// Next implements [driver.Receiver]. The fetcher claims as many messages as calls of Next wait, and more only while they are
// handled quickly.
func (f *receiver) Next(ctx context.Context) (*driver.Delivery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.ctx.Err() != nil {
		return nil, driver.ErrClosed
	}
	select {
	case d := <-f.buffer:
		return f.hand(d), nil
	default:
	}
	f.waiting.Add(1)
	f.poke()
	select {
	case d := <-f.buffer:
		f.waiting.Add(-1) // before handed is incremented, so that the fetcher counts no more callers than wait
		defer f.poke()
		return f.hand(d), nil
	case <-ctx.Done():
		f.waiting.Add(-1)
		return nil, ctx.Err()
	case <-f.ctx.Done():
		f.waiting.Add(-1)
		return nil, driver.ErrClosed
	}
}

func (f *receiver) hand(d *Delivery) *driver.Delivery {
	f.handed.Add(1)
	left, half := f.bytes.Add(-d.size), int64(f.core.Config.PrefetchBytes/2)
	if len(f.buffer) == f.cap()/4 || left < half && left+d.size >= half {
		f.poke()
	}
	return &d.Delivery
}

// ParkedKeys implements [driver.ParkedKeyCounter].
func (f *receiver) ParkedKeys(ctx context.Context) (int, error) {
	n, _, err := database.Number(ctx, f.core.Pool, f.core.SQL(`SELECT count(DISTINCT pos) FROM {holds} WHERE group_id = ?`), f.group.id)
	return int(n), err
}

func (f *receiver) cap() int { return cap(f.buffer) }

// Close implements [driver.Receiver].
func (f *receiver) Close(ctx context.Context) error {
	f.closing.Do(func() {
		f.cancel()
		f.core.waker.remove(f.consumer)
		stop := context.AfterFunc(ctx, f.hangUp)
		f.fetching.Wait()
		stop()
		f.hangUp()
		f.giveBackBuffer()
		f.closeErr = f.settlements.flush(ctx)
		if f.closeErr == nil && f.settlements.out() == 0 {
			f.closeErr = f.end(ctx)
		}
	})
	return f.closeErr
}

// end gives back all unsettled messages, and deletes the lease.
func (f *receiver) end(ctx context.Context) error {
	if err := f.settlements.close(ctx); err != nil {
		return fmt.Errorf("sql: close group %q: %w; its messages are redelivered when its lease has expired", f.group.name, err)
	}
	return f.core.leases.end(ctx, f.consumer)
}

// giveBackBuffer gives back the messages in the buffer. No attempt is counted, because they were not delivered.
func (f *receiver) giveBackBuffer() {
	for {
		select {
		case d := <-f.buffer:
			f.handed.Add(1 + int64(len(d.behind)))
			f.bytes.Add(-d.size)
			for _, d := range d.behind {
				_ = d.GiveBack(0)
			}
			_ = d.GiveBack(0) // nobody else settles it
		default:
			return
		}
	}
}

// deliver makes deliveries of claimed messages and puts them into the buffer, which has room. It drops messages that the
// receiver already has: a crash of the server has undone their first claim. The caller holds claimLock, so no message is given back
// at the same time.
func (f *receiver) deliver(taken []record) {
	var bundle []*Delivery
	for i := range taken {
		d, err := f.newDelivery(&taken[i])
		switch {
		case !f.settlements.track(d):
		case err != nil:
			f.refuse(d, err)
		case f.bundle > 0:
			bundle = append(bundle, d)
		default:
			f.pushed.Add(1)
			d.size = int64(len(taken[i].payload) + len(taken[i].headers))
			f.bytes.Add(d.size)
			f.buffer <- d
		}
	}
	if len(bundle) > 0 {
		bundle[0].behind = bundle[1:]
		f.pushed.Add(int64(len(bundle)))
		f.buffer <- bundle[0]
	}
}

// refuseAgain is the delay before a failed poisoning is retried.
const refuseAgain = 30 * time.Second

// refuse poisons a message that can't be delivered.
func (f *receiver) refuse(d *Delivery, err error) {
	f.core.Config.Logger.Error("leat: sql: message poisoned", "group", f.group.name, "id", d.ID, "error", err)
	ctx, cancel := context.WithTimeout(f.talking, database.StatementTimeout)
	defer cancel()
	if err := d.Poison(ctx, driver.NewFault(&d.Delivery, err)); err != nil {
		f.core.Config.Logger.Error("leat: sql: poison queue unreachable", "group", f.group.name, "id", d.ID, "error", err)
		_ = d.Redeliver(refuseAgain) // fails only if the receiver is closed, which gives the message back
	}
}

func (f *receiver) newDelivery(m *record) (*Delivery, error) {
	headers, err := decodeHeaders(m.headers)
	if headers == nil {
		headers = message.Metadata{}
	}
	d := &Delivery{settlements: f.settlements, ID: m.id, state: m.state}
	d.history = driver.TakeHistory(headers)
	driver.DropPrivate(headers) // others may have written the row
	d.headers = m.headers
	if m.state == database.StateKeyHead {
		d.keyQueue = keyQueueOf(&message.Message{Metadata: headers})
	}
	d.Delivery = driver.Delivery{
		Message:   newMessage(m.uuid, headers, m.payload),
		Topic:     m.topic,
		Group:     f.group.name,
		Attempt:   m.attempt,
		FirstSeen: time.UnixMicro(m.firstAt),
		Settler:   d,
		Fence:     uint64(m.fence), //nolint:gosec // never negative

		History: d.history,
	}
	return d, err
}
