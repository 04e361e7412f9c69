package memory

import (
	"context"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus"
)

// handlerOverdraft is how many times its bound a queue takes from publishing handlers.
const handlerOverdraft = 8

// fullNotice is how long a publisher waits for a full group before the log says so.
const fullNotice = 5 * time.Second

// reserving is a publisher that waits for room.
type reserving struct {
	size      int
	overdraft int
	granted   chan error
	gone      bool
}

// reserve takes a place for a message of that size, and waits for it as long as ctx allows.
func (q *queue) reserve(ctx context.Context, size, overdraft int) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return bus.ErrClosed
	}
	if q.admits(size, overdraft) {
		q.occupy(size)
		q.mu.Unlock()
		return nil
	}
	r := &reserving{size: size, overdraft: overdraft, granted: make(chan error, 1)}
	q.givers.pushBack(r)
	q.mu.Unlock()

	patience := time.NewTimer(fullNotice)
	defer patience.Stop()
	for waiting := true; waiting; {
		select {
		case err := <-r.granted:
			return err
		case <-patience.C:
			q.warnFull()
		case <-ctx.Done():
			waiting = false
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case err := <-r.granted: // granted meanwhile
		return err
	default:
		r.gone = true
		return fmt.Errorf("group %q is full (%d messages, %d bytes): %w", q.group, q.size, q.bytes, context.Cause(ctx))
	}
}

// warnFull says why publishers wait. Messages behind one that waits for its next try fill a group too.
func (q *queue) warnFull() {
	q.mu.Lock()
	defer q.mu.Unlock()
	behind := 0
	for _, l := range q.lanes {
		behind += l.waiting.len()
	}
	q.cfg.Logger.Warn("leat: publishers wait for a full group; its handler is slow, or messages wait for their next try",
		"group", q.group, "messages", q.size, "bytes", q.bytes, "in_flight", q.out, "delayed", len(q.later), "behind_their_key", behind)
}

// admits reports whether a publisher may have a place without waiting: there is room, and nobody has
// waited longer. Handlers go before.
func (q *queue) admits(size, overdraft int) bool {
	return q.fits(size, overdraft) && (overdraft > 1 || q.givers.len() == 0)
}

func (q *queue) fits(size, overdraft int) bool {
	return q.size < q.cfg.Queue*overdraft && (q.bytes+size <= q.cfg.Bytes*overdraft || q.size == 0)
}

func (q *queue) occupy(size int) {
	q.size++
	q.bytes += size
	q.busy.Add(1)
}

// release gives a place back that no message took.
func (q *queue) release(size int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.vacate(size)
}

// vacate frees a message's place and lets publishers in that wait for it.
func (q *queue) vacate(size int) {
	q.size--
	q.bytes -= size
	q.busy.Add(-1)
	for {
		r, ok := q.givers.front()
		switch {
		case !ok:
			return
		case r.gone:
			q.givers.popFront()
		case q.fits(r.size, r.overdraft):
			q.givers.popFront()
			q.occupy(r.size)
			r.granted <- nil
		default:
			return
		}
	}
}
