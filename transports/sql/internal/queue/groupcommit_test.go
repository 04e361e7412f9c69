package queue

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// slowPool is a pool whose statements take some time. It counts them.
type slowPool struct {
	database.Pool
	took       time.Duration
	mu         sync.Mutex
	statements int
}

func (d *slowPool) Exec(ctx context.Context, _ string, _ ...any) (int64, error) {
	d.mu.Lock()
	d.statements++
	took := d.took
	d.mu.Unlock()
	if !backoff.Sleep(ctx, took) {
		return 0, ctx.Err()
	}
	return 1, nil
}

func (d *slowPool) takes(took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.took = took
}

// combining runs f with a groupCommit over the pool, and ends its lifetime.
func combining(t *testing.T, db database.Pool, f func(t *testing.T, c *groupCommit)) {
	synctest.Test(t, func(t *testing.T) {
		s, err := database.New(db, sqlconfig.Config{Dialect: sqlconfig.Postgres})
		require.NoError(t, err)
		life := newLifetime()
		c := newGroupCommit(life, publisher{s}, 3)
		f(t, c)
		life.cancel(driver.ErrClosed)
		life.work.Wait()
		_, err = c.insert(context.Background(), oneMessage())
		require.ErrorIs(t, err, driver.ErrClosed)
	})
}

func oneMessage() batch { return batch{"order.paid.v1", []publication{{uuid: "m"}}} }

// TestGroupCommit_publishersShareACommit checks that publishers that publish again after a commit are all in the next one. Otherwise
// they alternate in two halves, each of which waits for the other's commit.
func TestGroupCommit_publishersShareACommit(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // so that runnable goroutines run one after the other
	const publishers, each = 8, 50
	statements := func(publishers int) (n int) {
		db := &slowPool{took: time.Millisecond}
		combining(t, db, func(t *testing.T, c *groupCommit) {
			var wg sync.WaitGroup
			for range publishers {
				wg.Go(func() {
					for range each {
						n, err := c.insert(context.Background(), oneMessage())
						if err != nil || n != 1 {
							t.Errorf("%d rows: %v", n, err)
						}
					}
				})
			}
			wg.Wait()
			n = db.statements
		})
		return n
	}
	require.Equal(t, each, statements(1))
	require.Less(t, statements(publishers), each*3/2)
}

// TestGroupCommit_canceledPublisherLeavesTheOthers checks that the leader's context bounds its own commit only. The waiters are
// committed anyway, also if one of them has given up.
func TestGroupCommit_canceledPublisherLeavesTheOthers(t *testing.T) {
	db := &slowPool{took: time.Hour}
	combining(t, db, func(t *testing.T, c *groupCommit) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		patient := make(chan error, 1)
		go func() {
			time.Sleep(time.Millisecond) // the other one has started
			_, err := c.insert(context.Background(), oneMessage())
			patient <- err
		}()
		impatient := make(chan error, 1)
		go func() {
			time.Sleep(time.Millisecond)
			ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
			defer cancel()
			_, err := c.insert(ctx, oneMessage())
			impatient <- err
		}()
		began := time.Now()
		time.AfterFunc(time.Second/2, func() { db.takes(time.Millisecond) })
		_, err := c.insert(ctx, oneMessage())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(began))
		require.ErrorIs(t, <-impatient, context.DeadlineExceeded)
		require.NoError(t, <-patient)
		require.Equal(t, 2, db.statements)
	})
}

// stubbornPool is a pool that cancels statements with one message after some time.
type stubbornPool struct {
	database.Pool
	took time.Duration
}

func (d *stubbornPool) Exec(ctx context.Context, _ string, args ...any) (int64, error) {
	if !strings.Contains(fmt.Sprint(args...), "large") {
		backoff.Sleep(ctx, time.Millisecond)
		return 1, ctx.Err()
	}
	if !backoff.Sleep(ctx, d.took) {
		return 0, ctx.Err()
	}
	return 0, &pgconn.PgError{Code: "57014"}
}

// TestGroupCommit_aStatementThatNeverSucceedsHoldsUpNobody checks that a statement that always fails delays no other publisher, whether
// it is the first or shares a commit.
func TestGroupCommit_aStatementThatNeverSucceedsHoldsUpNobody(t *testing.T) {
	for _, took := range []time.Duration{150 * time.Millisecond, 20 * time.Second} { // by the server, by the client
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s first %t", took, first), func(t *testing.T) {
				combining(t, &stubbornPool{took: took}, func(t *testing.T, c *groupCommit) {
					ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
					defer cancel()
					var wg sync.WaitGroup
					publish := func(uuid string) {
						wg.Go(func() {
							began := time.Now()
							_, err := c.insert(ctx, batch{"order.paid.v1", []publication{{uuid: uuid}}})
							if uuid == "large" {
								assert.ErrorIs(t, err, context.DeadlineExceeded)
								return
							}
							assert.NoError(t, err)
							assert.Less(t, time.Since(began), database.StatementTimeout+3*time.Second, "the publisher waits for the other")
						})
						synctest.Wait()
					}
					if !first {
						publish("small")
					}
					publish("large")
					for range 5 {
						publish("small")
					}
					time.Sleep(40 * time.Second)
					for range 5 {
						began := time.Now()
						_, err := c.insert(ctx, oneMessage())
						require.NoError(t, err)
						require.Less(t, time.Since(began), time.Second)
					}
					wg.Wait()
				})
			})
		}
	}
}
