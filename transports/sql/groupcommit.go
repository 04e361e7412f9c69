package sql

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
)

// groupCommit lets publishers that come at the same time share a statement and its commit:
//
//   - A publisher that comes while no commit is under way is the leader: it commits by itself, and waits for nobody.
//   - Publishers that come meanwhile are waiters. What waits when the leader is done is one batch, and one commit.
//   - If many wait, more commits are made at once.
//   - If the leader takes longer than leaderPatience, the waiters go on without it.
//
// What the database can't do now is tried again, for as long as the publisher waits, and beside the others: it may
// be that publisher's own statement that takes too long or too much memory.
//
// After a commit, the next one yields until the publishers that were released have come back. Otherwise publishers
// alternate in two halves, and make two commits where one will do.
type groupCommit struct {
	*lifetime
	publisher
	some chan struct{} // somebody waits, and there is no leader
	many chan struct{} // more wait than one commit should keep waiting, or for longer

	mu      sync.Mutex
	busy    bool // there is a leader, or commit sees to the waiters
	waiters []*insertion
	began   time.Time // when the latest commit began
}

// insertion is one publisher's part of a commit.
type insertion struct {
	ctx      context.Context
	batch    batch
	done     chan struct{}
	inserted int64
	err      error
}

const (
	// manyWaiters is how many publishers must wait for a further commit to be made at the same time.
	manyWaiters = 64
	// leaderPatience is how long waiters wait for the leader.
	leaderPatience = 2 * time.Second
)

// newGroupCommit makes a group commit that has at most as many commits under way at once as there are committers.
func newGroupCommit(life *lifetime, p publisher, committers int) *groupCommit {
	c := &groupCommit{lifetime: life, publisher: p, some: make(chan struct{}, 1), many: make(chan struct{}, 1)}
	c.work.Go(c.commit)
	for range committers - 1 {
		c.work.Go(c.help)
	}
	return c
}

// insert blocks until the rows are committed or ctx is done; in the latter case they may still be
// committed.
func (c *groupCommit) insert(ctx context.Context, b batch) (int64, error) {
	i := c.enter(ctx, b)
	if i == nil {
		return c.lead(ctx, b)
	}
	select {
	case <-i.done:
		return i.inserted, i.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-c.ctx.Done():
		return 0, driver.ErrClosed
	}
}

// enter makes a publisher wait for the next commit, unless it returns nil: then the publisher is the leader.
func (c *groupCommit) enter(ctx context.Context, b batch) *insertion {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.busy {
		c.busy, c.began = true, time.Now()
		return nil
	}
	i := &insertion{ctx: ctx, batch: b, done: make(chan struct{})}
	c.waiters = append(c.waiters, i)
	if len(c.waiters) >= manyWaiters || time.Since(c.began) > leaderPatience {
		wake(c.many)
	}
	return i
}

// lead commits one batch by itself, and hands over to commit if others wait by then.
func (c *groupCommit) lead(ctx context.Context, b batch) (inserted int64, err error) {
	ctx, cancel := c.while(ctx)
	defer cancel()
	handOver := sync.OnceFunc(c.handOver)
	defer time.AfterFunc(leaderPatience, handOver).Stop()
	defer handOver()
	err = c.retry(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, statementTimeout)
		defer cancel()
		defer handOver() // also before a second try
		counts, err := c.insertAll(ctx, []batch{b})
		if err == nil {
			inserted = counts[0]
		}
		return err
	})
	return inserted, err
}

// handOver leaves the waiters to commit.
func (c *groupCommit) handOver() {
	if !c.rest() {
		wake(c.some)
	}
}

// rest ends the commits if nobody waits.
func (c *groupCommit) rest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = len(c.waiters) > 0
	return !c.busy
}

// commit sees to those who wait until none does.
func (c *groupCommit) commit() {
	for {
		select {
		case <-c.some:
		case <-c.ctx.Done():
			return
		}
		for last := 0; ; {
			if last > 1 {
				c.yield()
			}
			if c.rest() {
				break
			}
			batch := c.take()
			c.begin()
			c.run(batch)
			last = len(batch)
		}
	}
}

func (c *groupCommit) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = time.Now()
}

// help makes further commits at the same time, once many wait, until none does.
func (c *groupCommit) help() {
	for {
		select {
		case <-c.many:
		case <-c.ctx.Done():
			return
		}
		for batch := c.take(); len(batch) > 0; batch = c.take() {
			c.run(batch)
		}
	}
}

// yield lets the goroutines run first that are ready to, as long as they bring more. It waits for no others.
func (c *groupCommit) yield() {
	for before, now := -1, c.count(); before < now && now < manyWaiters; before, now = now, c.count() {
		runtime.Gosched()
	}
}

func (c *groupCommit) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiters)
}

// take returns what waits, up to what one statement takes.
func (c *groupCommit) take() (group []*insertion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := 0
	for len(c.waiters) > 0 {
		next := c.waiters[0]
		if rows += len(next.batch.rows); rows > maxInsert && len(group) > 0 {
			wake(c.many) // for the rest
			break
		}
		group, c.waiters = append(group, next), c.waiters[1:]
	}
	return group
}

// run commits a group. After an error it tries one by one, because it need not be everybody's: at once, or
// beside the others if the database may be able to do it later.
func (c *groupCommit) run(group []*insertion) {
	group = c.leave(group)
	if len(group) == 0 {
		return
	}
	err := c.insertBatch(group)
	switch {
	case err == nil:
		c.link.works()
	case c.ctx.Err() != nil:
		c.fail(group, driver.ErrClosed)
	case c.temporary(err):
		for _, i := range group {
			c.work.Go(func() { c.tryAgain(i) })
		}
	case len(group) == 1:
		c.fail(group, err)
	default:
		for _, i := range group {
			c.run([]*insertion{i})
		}
	}
}

// tryAgain commits what one publisher waits for, as long as he does.
func (c *groupCommit) tryAgain(i *insertion) {
	ctx, cancel := c.while(i.ctx)
	defer cancel()
	wait := newBackoff()
	err := errors.New("not tried yet")
	for err != nil && backoff.Sleep(ctx, wait.Next()) {
		if err = c.insertBatch([]*insertion{i}); err != nil && !c.temporary(err) {
			c.fail([]*insertion{i}, err)
			return
		}
	}
	if err == nil {
		c.link.works()
	} // else nobody waits any more
}

// leave takes those out whose callers have gone.
func (c *groupCommit) leave(group []*insertion) (stay []*insertion) {
	for _, i := range group {
		if i.ctx.Err() == nil {
			stay = append(stay, i)
		}
	}
	return stay
}

func (c *groupCommit) fail(group []*insertion, err error) {
	err = c.explain(err)
	for _, i := range group {
		i.err = err
		close(i.done)
	}
}

// insertBatch inserts all or none. One context of a publisher's does not end the others' commit.
func (c *groupCommit) insertBatch(group []*insertion) error {
	ctx, cancel := context.WithTimeout(c.ctx, statementTimeout)
	defer cancel()
	batches, inserted := merge(group)
	counts, err := c.insertAll(ctx, batches)
	if err != nil {
		return err
	}
	for n, i := range group {
		i.inserted = counts[inserted[n]]
		close(i.done)
	}
	return nil
}

// merge makes one batch of each topic; of[n] is the batch that the nth insertion is part of. All
// messages of a topic reach the same groups, so that what is true of a batch is of its parts.
func merge(group []*insertion) (batches []batch, of []int) {
	index := make(map[string]int, 1)
	for _, i := range group {
		n, ok := index[i.batch.topic]
		if !ok {
			n = len(batches)
			index[i.batch.topic] = n
			batches = append(batches, batch{topic: i.batch.topic})
		}
		batches[n].rows = append(batches[n].rows, i.batch.rows...)
		of = append(of, n)
	}
	return batches, of
}
