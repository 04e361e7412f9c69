package sql

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// feed hands out one group's messages. One goroutine, the fetcher, takes them from the database into a buffer, one
// carries out how they were settled.
type feed struct {
	*consumer
	core  *core
	alone bool // it has one worker

	buffer  chan *delivery
	waiting atomic.Int32 // calls of Next that found the buffer empty
	handed  atomic.Int64 // deliveries that left the buffer so far
	pushed  atomic.Int64 // deliveries put into the buffer so far

	settlements *settlements
	bundle      int // for relays: how many messages to take and hand out at once; 0 for one by one

	ctx      context.Context // ends when the feed closes
	cancel   context.CancelFunc
	talking  context.Context // ends when the feed can wait no more for what it has asked the database
	hangUp   context.CancelFunc
	fetching sync.WaitGroup
	closing  sync.Once
	closeErr error
}

func newFeed(shared *core, of *consumer, s driver.Subscription) *feed {
	f := &feed{
		consumer:    of,
		core:        shared,
		alone:       s.Concurrency == 1,
		buffer:      make(chan *delivery, shared.cfg.Prefetch+s.Concurrency),
		settlements: newSettlements(shared, of),
	}
	f.ctx, f.cancel = context.WithCancel(shared.ctx)
	f.talking, f.hangUp = context.WithCancel(shared.ctx)
	return f
}

// Next hands out the next message. It takes from the database as many as there are calls of Next
// that wait, and more only while these are handled quickly.
func (f *feed) Next(ctx context.Context) (*driver.Delivery, error) {
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
		f.waiting.Add(-1) // before the hand-over: never may more seem to wait than do
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

func (f *feed) hand(d *delivery) *driver.Delivery {
	f.handed.Add(1)
	if len(f.buffer) == f.cap()/4 {
		f.poke()
	}
	return &d.delivery
}

func (f *feed) cap() int { return cap(f.buffer) }

// Close stops the feed and gives back what it holds and has not handed out.
func (f *feed) Close(ctx context.Context) error {
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

// end gives back what is out, and ends the lease.
func (f *feed) end(ctx context.Context) error {
	if err := f.settlements.close(ctx); err != nil {
		return fmt.Errorf("sql: close group %q: %w; what it held comes again when its lease has run out", f.group.name, err)
	}
	return f.core.leases.end(ctx, f.consumer)
}

// giveBackBuffer gives back what is in the buffer. It costs no attempt: nobody has seen it.
func (f *feed) giveBackBuffer() {
	for {
		select {
		case d := <-f.buffer:
			f.handed.Add(1 + int64(len(d.behind)))
			for _, d := range d.behind {
				_ = d.GiveBack(0)
			}
			_ = d.GiveBack(0) // it is settled once, here
		default:
			return
		}
	}
}

// deliver makes deliveries of what was taken and puts them into the buffer, which has room. What the
// feed holds already is left out: a crash of the server has undone the claim, and this one repeats it.
// It is called within a claim, so that nothing is on its way back.
func (f *feed) deliver(taken []record) {
	var bundle []*delivery
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
			f.buffer <- d
		}
	}
	if len(bundle) > 0 {
		bundle[0].behind = bundle[1:]
		f.pushed.Add(int64(len(bundle)))
		f.buffer <- bundle[0]
	}
}

// refuseAgain is when a message is tried again that could not be poisoned.
const refuseAgain = 30 * time.Second

// refuse poisons a message that can't be handed out.
func (f *feed) refuse(d *delivery, err error) {
	f.core.cfg.Logger.Error("leat: sql: message poisoned", "group", f.group.name, "id", d.id, "error", err)
	ctx, cancel := context.WithTimeout(f.talking, statementTimeout)
	defer cancel()
	if err := d.Poison(ctx, driver.NewFault(&d.delivery, err)); err != nil {
		f.core.cfg.Logger.Error("leat: sql: poison queue unreachable", "group", f.group.name, "id", d.id, "error", err)
		_ = d.Redeliver(refuseAgain) // it fails only if the feed is closed, and then the message goes back
	}
}

func (f *feed) newDelivery(m *record) (*delivery, error) {
	headers, err := decodeHeaders(m.headers)
	if headers == nil {
		headers = message.Metadata{}
	}
	d := &delivery{settlements: f.settlements, id: m.id, state: m.state}
	d.history = driver.TakeHistory(headers)
	driver.DropPrivate(headers) // somebody else has written the row
	d.headers = m.headers
	if m.state == stateKeyHead {
		d.keyQueue = keyQueueOf(&message.Message{Metadata: headers})
	}
	d.delivery = driver.Delivery{
		Message:   newMessage(m.uuid, headers, m.payload),
		Topic:     m.topic,
		Group:     f.group.name,
		Attempt:   m.attempt,
		FirstSeen: time.UnixMicro(m.firstAt),
		Settler:   d,

		History: d.history,
	}
	return d, err
}
