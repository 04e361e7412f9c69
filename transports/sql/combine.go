package sql

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// combiner lets publishers that come at the same time share a statement and its commit. Who comes while
// none is under way commits by itself, and waits for nobody; meanwhile the others gather, and what has
// gathered is one commit. Where many gather, more commits are made at once.
//
// What the database can't do now is tried again, for as long as the publisher waits, and beside the others: it may
// be that publisher's own statement that takes too long or too much memory. A publisher who commits by himself
// for longer than patientlyAlone lets the others go on as well.
//
// Whom a commit releases often has the next message at once. The next commit lets those come first, or
// the same publishers would always meet in the same two halves, and make two commits where one will do.
type combiner struct {
	transport *Transport
	some      chan struct{} // somebody waits whom nobody else sees to
	many      chan struct{} // more wait than one commit should keep waiting, or for longer

	mu      sync.Mutex
	busy    bool // somebody commits, and then sees to those who wait
	waiting []*insertion
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

// crowd is how many publishers must wait for a further commit to be made at the same time.
const crowd = 64

// newCombiner has at most as many commits under way at once as there are committers.
func newCombiner(t *Transport, committers int) *combiner {
	c := &combiner{transport: t, some: make(chan struct{}, 1), many: make(chan struct{}, 1)}
	t.work.Go(c.commit)
	for range committers - 1 {
		t.work.Go(c.help)
	}
	return c
}

// insert blocks until the rows are committed or ctx is done; in the latter case they may still be
// committed.
func (c *combiner) insert(ctx context.Context, b batch) (int64, error) {
	i := c.enter(ctx, b)
	if i == nil {
		return c.alone(ctx, b)
	}
	select {
	case <-i.done:
		return i.inserted, i.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-c.transport.ctx.Done():
		return 0, driver.ErrClosed
	}
}

// enter makes a publisher wait for the next commit, unless it answers nil: then the publisher is to commit
// by itself, and to hand over.
func (c *combiner) enter(ctx context.Context, b batch) *insertion {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.busy {
		c.busy, c.began = true, time.Now()
		return nil
	}
	i := &insertion{ctx: ctx, batch: b, done: make(chan struct{})}
	c.waiting = append(c.waiting, i)
	if len(c.waiting) >= crowd || time.Since(c.began) > patientlyAlone {
		wake(c.many)
	}
	return i
}

// patientlyAlone is how long those who have gathered wait for one who commits by himself.
const patientlyAlone = 2 * time.Second

func (c *combiner) alone(ctx context.Context, b batch) (inserted int64, err error) {
	ctx, cancel := c.transport.while(ctx)
	defer cancel()
	handOver := sync.OnceFunc(c.handOver)
	defer time.AfterFunc(patientlyAlone, handOver).Stop()
	defer handOver()
	err = c.transport.store.retry(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, statementTimeout)
		defer cancel()
		defer handOver() // also before a second try
		counts, err := c.transport.store.insertAll(ctx, []batch{b})
		if err == nil {
			inserted = counts[0]
		}
		return err
	})
	return inserted, err
}

// handOver leaves those who have gathered to the goroutine that commits for them.
func (c *combiner) handOver() {
	if !c.rest() {
		wake(c.some)
	}
}

// rest ends the commits if nobody waits.
func (c *combiner) rest() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = len(c.waiting) > 0
	return !c.busy
}

// wake lets one goroutine look that waits on the signal, now or next.
func wake(signal chan<- struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// commit sees to those who wait until none does.
func (c *combiner) commit() {
	for {
		select {
		case <-c.some:
		case <-c.transport.ctx.Done():
			return
		}
		for last := 0; ; {
			if last > 1 {
				c.gather()
			}
			if c.rest() {
				break
			}
			group := c.take()
			c.begin()
			c.run(group)
			last = len(group)
		}
	}
}

func (c *combiner) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = time.Now()
}

// help makes further commits at the same time, once many wait, until none does.
func (c *combiner) help() {
	for {
		select {
		case <-c.many:
		case <-c.transport.ctx.Done():
			return
		}
		for group := c.take(); len(group) > 0; group = c.take() {
			c.run(group)
		}
	}
}

// gather lets the goroutines go first that are ready to run, as long as they bring more. It waits for
// nobody who is not.
func (c *combiner) gather() {
	for before, now := -1, c.count(); before < now && now < crowd; before, now = now, c.count() {
		runtime.Gosched()
	}
}

func (c *combiner) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waiting)
}

// take returns what waits, up to what one statement takes.
func (c *combiner) take() (group []*insertion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := 0
	for len(c.waiting) > 0 {
		next := c.waiting[0]
		if rows += len(next.batch.rows); rows > maxInsert && len(group) > 0 {
			wake(c.many) // for the rest
			break
		}
		group, c.waiting = append(group, next), c.waiting[1:]
	}
	return group
}

// run commits a group. After an error it tries one by one, because it need not be everybody's: at once, or
// beside the others if the database may be able to do it later.
func (c *combiner) run(group []*insertion) {
	group = c.leave(group)
	if len(group) == 0 {
		return
	}
	err := c.together(group)
	switch {
	case err == nil:
		c.transport.store.link.works()
	case c.transport.ctx.Err() != nil:
		c.fail(group, driver.ErrClosed)
	case c.transport.store.temporary(err):
		for _, i := range group {
			c.transport.work.Go(func() { c.tryAgain(i) })
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
func (c *combiner) tryAgain(i *insertion) {
	ctx, cancel := c.transport.while(i.ctx)
	defer cancel()
	var wait backoff
	err := errors.New("not tried yet")
	for err != nil && sleep(ctx, wait.next()) {
		if err = c.together([]*insertion{i}); err != nil && !c.transport.store.temporary(err) {
			c.fail([]*insertion{i}, err)
			return
		}
	}
	if err == nil {
		c.transport.store.link.works()
	} // else nobody waits any more
}

// leave takes those out whose callers have gone.
func (c *combiner) leave(group []*insertion) (stay []*insertion) {
	for _, i := range group {
		if i.ctx.Err() == nil {
			stay = append(stay, i)
		}
	}
	return stay
}

func (c *combiner) fail(group []*insertion, err error) {
	err = c.transport.store.explain(err)
	for _, i := range group {
		i.err = err
		close(i.done)
	}
}

// together inserts all or none. One context of a publisher's does not end the others' commit.
func (c *combiner) together(group []*insertion) error {
	ctx, cancel := context.WithTimeout(c.transport.ctx, statementTimeout)
	defer cancel()
	batches, inserted := merge(group)
	counts, err := c.transport.store.insertAll(ctx, batches)
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
