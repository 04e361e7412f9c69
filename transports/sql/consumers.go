package sql

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// A consumer is a feed as the database and the waker know it. Messages that bear its id are its own as long as
// its row is renewed. So a lease costs one row for each feed and three updates in its time, however many messages
// there are.
type consumer struct {
	id     int64
	group  group
	hints  atomic.Uint64 // reasons to look for messages so far
	signal chan struct{} // wakes the fetcher
}

func newConsumer(id int64, g group) *consumer {
	return &consumer{id: id, group: g, signal: make(chan struct{}, 1)}
}

// newConsumerID returns a random id, so that none is used twice: not after a restore, and not while a
// statement that bears it may still be on its way.
func newConsumerID() int64 { return rand.Int64N(1<<62) + 1 } // a name, not a secret

// poke lets the fetcher see what is wanted.
func (c *consumer) poke() { wake(c.signal) }

// hint tells the fetcher that there may be something to fetch.
func (c *consumer) hint() {
	c.hints.Add(1)
	c.poke()
}

// wake lets one goroutine look that waits on the signal, now or next.
func wake(signal chan<- struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// thisProcess shows operators whose lease it is.
func thisProcess() string {
	host, _ := os.Hostname()
	return host + "/" + strconv.Itoa(os.Getpid())
}

// consumers are the rows of all processes' consumers.
type consumers struct {
	*database
	place string // this process, for operators
}

func (c consumers) register(ctx context.Context, ex executor, g group, id int64) error {
	_, err := ex.exec(ctx, c.sql(`INSERT INTO {consumers} (id, group_id, ordering, expires_at, place) VALUES (?, ?, ?, {now} + ?, ?)`),
		id, g.id, int(g.order), c.cfg.Lease.Microseconds(), c.place)
	return err
}

// renew renews leases. If others took a consumer for dead and deleted its row, renew enters it again: its
// messages are others' by now, but new ones must be its own.
func (c consumers) renew(ctx context.Context, ex executor, all []*consumer) error {
	ids := make([]int64, len(all))
	for i, one := range all {
		ids[i] = one.id
	}
	query, args := c.withIDs(`UPDATE {consumers} SET expires_at = {now} + ? WHERE id {in}`, ids, c.cfg.Lease.Microseconds())
	n, err := ex.exec(ctx, query, args...)
	if err != nil || int(n) == len(all) {
		return err
	}
	query, args = c.withIDs(`SELECT id FROM {consumers} WHERE id {in}`, ids)
	there, err := numbers(ctx, ex, query, args...)
	if err != nil {
		return err
	}
	alive := make(map[int64]bool, len(there))
	for _, id := range there {
		alive[id] = true
	}
	for _, one := range all {
		if !alive[one.id] {
			if err := c.register(ctx, ex, one.group, one.id); err != nil {
				return err
			}
		}
	}
	return nil
}

// living returns the ids of the consumers of all groups whose leases have not run out.
func (c consumers) living(ctx context.Context) ([]int64, error) {
	return numbers(ctx, c.pool, c.sql(`SELECT id FROM {consumers} WHERE expires_at > {now}`))
}

// leave ends a lease.
func (c consumers) leave(ctx context.Context, id int64) error {
	_, err := c.pool.exec(ctx, c.sql(`DELETE FROM {consumers} WHERE id = ?`), id)
	return err
}

// buryAfter is how long the lease of a dead consumer stays to be seen.
const buryAfter = 10 * time.Minute

// bury deletes the leases of consumers that are long dead.
func (c consumers) bury(ctx context.Context) error {
	_, err := c.relaxed.exec(ctx, c.sql(`DELETE FROM {consumers} WHERE expires_at < {now} - ?`), buryAfter.Microseconds())
	return err
}
