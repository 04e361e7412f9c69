package sql

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
)

// slowDatabase takes a millisecond for each statement, and counts them.
type slowDatabase struct {
	database
	mu         sync.Mutex
	statements int
}

func (d *slowDatabase) exec(context.Context, string, ...any) (int64, error) {
	d.mu.Lock()
	d.statements++
	d.mu.Unlock()
	time.Sleep(time.Millisecond)
	return 1, nil
}

// TestPublishersMeetInOneCommit: publishers whom a commit releases, and who go on at once, are all in the
// next. Else they would stay in two halves, of which each waits for the other's commit.
func TestPublishersMeetInOneCommit(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that those who are ready run in turn
	const publishers, each = 8, 50
	statements := func(publishers int) int {
		db := &slowDatabase{}
		synctest.Test(t, func(t *testing.T) {
			s, err := newStore(db, Config{Dialect: Postgres})
			require.NoError(t, err)
			transport := &Transport{store: s}
			transport.ctx, transport.cancel = context.WithCancelCause(context.Background())
			c := newCombiner(transport, 3)
			var wg sync.WaitGroup
			for range publishers {
				wg.Go(func() {
					for range each {
						n, err := c.insert(context.Background(), "order.paid.v1", []publication{{uuid: "m"}})
						if err != nil || n != 1 {
							t.Errorf("%d rows: %v", n, err)
						}
					}
				})
			}
			wg.Wait()
			transport.cancel(bus.ErrClosed)
			transport.work.Wait()
			_, err = c.insert(context.Background(), "order.paid.v1", []publication{{uuid: "m"}})
			require.ErrorIs(t, err, bus.ErrClosed)
		})
		return db.statements
	}
	require.Equal(t, each, statements(1))
	require.Less(t, statements(publishers), each*3/2)
}
