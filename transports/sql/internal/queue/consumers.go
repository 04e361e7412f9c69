package queue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A consumer identifies a receiver in the database and to the waker. It owns the messages that have its id in the
// column owner, as long as its row in {consumers} is renewed. So a lease costs one row for each receiver and three updates
// per lease time, whatever the number of messages.
type consumer struct {
	id     int64
	group  group
	who    subscriber
	hints  atomic.Uint64 // how often hint was called
	signal chan struct{} // wakes the fetcher
}

func newConsumer(id int64, g group, who subscriber) *consumer {
	return &consumer{id: id, group: g, who: who, signal: make(chan struct{}, 1)}
}

// newConsumerID returns a random id, so that no id is used twice: not after a restore of the database, and not
// while a delayed statement may still contain it.
func newConsumerID() int64 { return rand.Int64N(1<<62) + 1 } // need not be secret

// poke wakes the fetcher, which then checks how many messages are wanted.
func (c *consumer) poke() { wake(c.signal) }

// hint wakes the fetcher because there may be messages to claim.
func (c *consumer) hint() {
	c.hints.Add(1)
	c.poke()
}

// wake wakes the goroutine that waits on the signal, or the next one that does. It never blocks.
func wake(signal chan<- struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// thisProcess returns the host and the process id. Operators find them in {consumers}.
func thisProcess() string {
	host, _ := os.Hostname()
	return host + "/" + strconv.Itoa(os.Getpid())
}

// consumers reads and writes the table of consumers, which has those of all processes.
type consumers struct {
	*database.DB
	place string // of this process, as thisProcess returns it
}

// subscriber is what a consumer's row says about its program.
type subscriber struct{ program, topics string }

// maxSubscriberTopics bounds the column; what is longer is unknown to others, as a part of it would be wrong.
const maxSubscriberTopics, maxSubscriberProgram = 4000, 255

func subscriberOf(s driver.Subscription) subscriber {
	topics := strings.Join(s.Topics, "\n")
	if len(topics) > maxSubscriberTopics {
		topics = ""
	}
	if len(s.Program) > maxSubscriberProgram {
		s.Program = ""
	}
	return subscriber{program: s.Program, topics: topics}
}

func (c consumers) register(ctx context.Context, ex database.Executor, g group, id int64, who subscriber) error {
	if c.Programs {
		_, err := ex.Exec(ctx, c.SQL(`INSERT INTO {consumers} (id, group_id, ordering, expires_at, place, program, topics) VALUES (?, ?, ?, {now} + ?, ?, ?, ?)`),
			id, g.id, int(g.order), c.Config.Lease.Microseconds(), c.place, who.program, who.topics)
		return err
	}
	_, err := ex.Exec(ctx, c.SQL(`INSERT INTO {consumers} (id, group_id, ordering, expires_at, place) VALUES (?, ?, ?, {now} + ?, ?)`),
		id, g.id, int(g.order), c.Config.Lease.Microseconds(), c.place)
	return err
}

// renew renews leases. If another process has deleted the row of a consumer because its lease had expired, renew inserts
// the row again: others may have claimed its messages by now, but messages that it claims from now on must be its own. If the
// group was removed meanwhile, it renews the other leases and returns errRemoved.
func (c consumers) renew(ctx context.Context, ex database.Executor, all []*consumer) error {
	ids := make([]int64, len(all))
	for i, one := range all {
		ids[i] = one.id
	}
	query, args := c.WithIDs(`UPDATE {consumers} SET expires_at = {now} + ? WHERE id {in}`, ids, c.Config.Lease.Microseconds())
	n, err := ex.Exec(ctx, query, args...)
	if err != nil || int(n) == len(all) {
		return err
	}
	query, args = c.WithIDs(`SELECT id FROM {consumers} WHERE id {in}`, ids)
	there, err := database.Numbers(ctx, ex, query, args...)
	if err != nil {
		return err
	}
	var removed error
	for _, one := range all {
		if slices.Contains(there, one.id) {
			continue
		}
		_, exists, err := database.Number(ctx, ex, c.SQL(`SELECT group_id FROM {turns} WHERE group_id = ?`), one.group.id)
		switch {
		case err != nil:
			return err
		case !exists:
			removed = errors.Join(removed, fmt.Errorf("%s: %w", one.group.name, errRemoved))
		default:
			if err := c.register(ctx, ex, one.group, one.id, one.who); err != nil {
				return err
			}
		}
	}
	return removed
}

// unexpired returns the ids of the consumers of all groups whose leases have not expired.
func (c consumers) unexpired(ctx context.Context) ([]int64, error) {
	return database.Numbers(ctx, c.Pool, c.SQL(`SELECT id FROM {consumers} WHERE expires_at > {now}`))
}

// of returns the living consumers of a group.
func (c consumers) of(ctx context.Context, g group) ([]driver.Consumer, error) {
	type row struct{ place, program, topics string }
	found, err := database.Collect(ctx, c.Pool, func(r database.Rows, x *row) error { return r.Scan(&x.place, &x.program, &x.topics) },
		c.SQL(`SELECT place, program, topics FROM {consumers} WHERE group_id = ? AND expires_at > {now}`), g.id)
	all := make([]driver.Consumer, len(found))
	for i, x := range found {
		all[i] = driver.Consumer{Place: x.place, Program: x.program}
		if x.topics != "" {
			all[i].Topics = strings.Split(x.topics, "\n")
		}
	}
	return all, err
}

// leave ends a lease.
func (c consumers) leave(ctx context.Context, id int64) error {
	_, err := c.Pool.Exec(ctx, c.SQL(`DELETE FROM {consumers} WHERE id = ?`), id)
	return err
}

// keepExpired is how long an expired lease is kept, for operators to see.
const keepExpired = 10 * time.Minute

// deleteExpired deletes leases that expired long ago.
func (c consumers) deleteExpired(ctx context.Context) error {
	_, err := c.Relaxed.Exec(ctx, c.SQL(`DELETE FROM {consumers} WHERE expires_at < {now} - ?`), keepExpired.Microseconds())
	return err
}
