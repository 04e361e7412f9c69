package queue

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A groupCommit lets concurrent publishers share a statement and its commit:
//
//   - A publisher that arrives while no commit is running is the leader: it commits its own messages without waiting.
//   - Publishers that arrive meanwhile are waiters. All of them are one batch and one commit after the leader's.
//   - If there are many waiters, several commits run at once.
//   - If the leader takes longer than leaderPatience, the waiters commit without it.
//
// A failed insert is retried separately for each publisher, as long as it waits: the messages of one publisher may take too long or too
// much memory.
//
// After a commit, the next one yields until the released publishers can join it. Otherwise publishers alternate in two half-size
// batches.
type groupCommit struct {
	*lifetime
	publisher
	some chan struct{} // there are waiters, and no leader
	many chan struct{} // there are many waiters, or they have waited too long

	mu      sync.Mutex
	busy    bool // there is a leader, or commit serves the waiters
	waiters []*insertion
	began   time.Time // start of the latest commit
}

// An insertion is one publisher's part of a commit.
type insertion struct {
	ctx      context.Context
	batch    batch
	done     chan struct{}
	inserted int64
	err      error
}

const (
	// manyWaiters is the number of waiters from which further commits run at the same time.
	manyWaiters = 64
	// leaderPatience is how long waiters wait for the leader's commit.
	leaderPatience = 2 * time.Second
)

// newGroupCommit returns a group commit that runs up to that many commits at once.
func newGroupCommit(life *lifetime, p publisher, committers int) *groupCommit {
	c := &groupCommit{lifetime: life, publisher: p, some: make(chan struct{}, 1), many: make(chan struct{}, 1)}
	c.work.Go(c.commit)
	for range committers - 1 {
		c.work.Go(c.help)
	}
	return c
}

// insert inserts a batch. It blocks until the rows are committed or ctx is done; in the latter case they may
// still be committed. It returns 0 if no group wants the messages, and another number if groups do.
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

// enter adds a publisher to the waiters of the next commit. It returns nil if the publisher is the leader instead.
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

// lead commits one batch alone. Afterwards, or after leaderPatience, it hands the waiters over to commit.
func (c *groupCommit) lead(ctx context.Context, b batch) (inserted int64, err error) {
	ctx, cancel := c.while(ctx)
	defer cancel()
	handOver := sync.OnceFunc(c.handOver)
	defer time.AfterFunc(leaderPatience, handOver).Stop()
	defer handOver()
	err = c.Retry(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, database.StatementTimeout)
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

// handOver makes commit serve the waiters, if there are any.
func (c *groupCommit) handOver() {
	if !c.idle() {
		wake(c.some)
	}
}

// idle reports whether there are no waiters. If so, the next publisher becomes the leader.
func (c *groupCommit) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = len(c.waiters) > 0
	return !c.busy
}

// commit runs commits, one after the other, until there are no waiters.
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
			if c.idle() {
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

// help runs further commits at the same time when there are many waiters, until there are none.
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

// yield lets runnable goroutines run as long as that adds waiters. It does not wait for blocked ones.
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

// take removes and returns waiters, as many as fit into one statement.
func (c *groupCommit) take() (group []*insertion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := 0
	for len(c.waiters) > 0 {
		next := c.waiters[0]
		if rows += len(next.batch.rows); rows > MaxInsert && len(group) > 0 {
			wake(c.many) // for the rest
			break
		}
		group, c.waiters = append(group, next), c.waiters[1:]
	}
	return group
}

// run commits several insertions together. After an error it commits each of them separately, because one of them may have caused it:
// at once, or in the background with retries if the error is temporary.
func (c *groupCommit) run(group []*insertion) {
	group = c.waiting(group)
	if len(group) == 0 {
		return
	}
	err := c.insertBatch(group)
	switch {
	case err == nil:
		c.Link.Works()
	case c.ctx.Err() != nil:
		c.fail(group, driver.ErrClosed)
	case c.Temporary(err):
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

// tryAgain retries one insertion until it succeeds or its publisher's context is done.
func (c *groupCommit) tryAgain(i *insertion) {
	ctx, cancel := c.while(i.ctx)
	defer cancel()
	wait := database.NewBackoff()
	err := errors.New("not tried yet")
	for err != nil && backoff.Sleep(ctx, wait.Next()) {
		if err = c.insertBatch([]*insertion{i}); err != nil && !c.Temporary(err) {
			c.fail([]*insertion{i}, err)
			return
		}
	}
	if err == nil {
		c.Link.Works()
	}
}

// waiting returns the insertions whose publishers still wait.
func (c *groupCommit) waiting(group []*insertion) (stay []*insertion) {
	for _, i := range group {
		if i.ctx.Err() == nil {
			stay = append(stay, i)
		}
	}
	return stay
}

func (c *groupCommit) fail(group []*insertion, err error) {
	err = c.Explain(err)
	for _, i := range group {
		i.err = err
		close(i.done)
	}
}

// insertBatch inserts all or none. It does not use the contexts of the publishers, since one that is canceled must not abort
// the others' commit.
func (c *groupCommit) insertBatch(group []*insertion) error {
	ctx, cancel := context.WithTimeout(c.ctx, database.StatementTimeout)
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

// merge makes one batch of each topic; of[n] is the index of the batch that has the nth insertion. All messages of a
// topic reach the same groups, so if a batch has inserted no row, none of its insertions has.
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
