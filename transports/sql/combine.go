package sql

import (
	"context"
	"runtime"
	"sync"

	"github.com/leatbus/leat/bus"
)

// combiner lets publishers that come at the same time share a statement and its commit: while one is
// under way, the next gather. A publisher that is alone waits for nobody, and where many gather,
// more commits are made at once.
//
// Whom a commit releases often has the next message at once. The next commit lets those come first, or
// the same publishers would always meet in the same two halves, and make two commits where one will do.
type combiner struct {
	transport *Transport
	some      chan struct{} // somebody waits
	many      chan struct{} // more wait than one commit should keep waiting

	mu      sync.Mutex
	waiting []*insertion
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
	t.work.Go(func() { c.commit(c.some) })
	for range committers - 1 {
		t.work.Go(func() { c.commit(c.many) })
	}
	return c
}

// insert blocks until the rows are committed or ctx is done; in the latter case they may still be
// committed.
func (c *combiner) insert(ctx context.Context, topic string, rows []publication) (int64, error) {
	i := &insertion{ctx: ctx, batch: batch{topic, rows}, done: make(chan struct{})}
	c.mu.Lock()
	c.waiting = append(c.waiting, i)
	many := len(c.waiting) >= crowd
	c.mu.Unlock()
	wake(c.some)
	if many {
		wake(c.many)
	}
	select {
	case <-i.done:
		return i.inserted, i.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-c.transport.ctx.Done():
		return 0, bus.ErrClosed
	}
}

// wake lets one goroutine look that waits on the signal, now or next.
func wake(signal chan<- struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

func (c *combiner) commit(signal <-chan struct{}) {
	var group []*insertion
	for {
		select {
		case <-signal:
		case <-c.transport.ctx.Done():
			return
		}
		for {
			if len(group) > 1 {
				c.gather()
			}
			if group = c.take(); len(group) == 0 {
				break
			}
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

// run commits a group. While the database is away it tries again with all who still wait; for any
// other error it tries one by one, because it need not be everybody's.
func (c *combiner) run(group []*insertion) {
	var wait backoff
	for {
		group = c.leave(group)
		if len(group) == 0 {
			return
		}
		err := c.together(group)
		switch {
		case err == nil:
			c.transport.store.link.works()
			return
		case c.transport.ctx.Err() != nil:
			c.fail(group, bus.ErrClosed)
			return
		case c.transport.store.temporary(err):
			sleep(c.transport.ctx, wait.next())
		case len(group) == 1:
			c.fail(group, err)
			return
		default:
			for _, i := range group {
				c.run([]*insertion{i})
			}
			return
		}
	}
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
