package sql_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestClose_keepsWithinItsContext checks that Close returns in time also if the network drops all packets.
func TestClose_keepsWithinItsContext(t *testing.T) {
	t.Parallel()
	for name, on := range map[string]func(testing.TB) system{"postgres": onPostgres, "mysql": onMySQL} {
		t.Run(name, func(t *testing.T) {
			var took time.Duration
			for range 3 { // a busy machine may take long once
				if took = closeStalled(t, on(t)); took < 10*time.Second {
					return
				}
			}
			t.Errorf("Close takes %s; pgx alone takes 15 s", took)
		})
	}
}

// closeStalled returns how long Close with a context of one second takes while the network drops all packets.
func closeStalled(t *testing.T, s system) time.Duration {
	proxy := s.ThroughProxy(t)
	transport := s.Open(t)
	feed, err := transport.Subscribe(sqltest.Context(t), sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
	require.NoError(t, err)
	require.NoError(t, transport.Publish(sqltest.Context(t), "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")))
	sqltest.Next(t, feed, sqltest.Patience)
	proxy.Stall()
	defer proxy.Resume()
	ctx, cancel := context.WithTimeout(sqltest.Context(t), time.Second)
	defer cancel()
	began := time.Now()
	require.Error(t, transport.Close(ctx), "unsettled messages are redelivered when the lease has expired")
	return time.Since(began)
}

// TestClose_doesNotCallAPublishRefusedThatMayBeStored: the database does not answer any more.
func TestClose_doesNotCallAPublishRefusedThatMayBeStored(t *testing.T) {
	t.Parallel()
	for name, on := range map[string]func(testing.TB) system{"postgres": onPostgres, "mysql": onMySQL} {
		t.Run(name, func(t *testing.T) {
			s := on(t)
			proxy := s.ThroughProxy(t)
			transport := s.Open(t)
			feed, err := transport.Subscribe(sqltest.Context(t), sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
			require.NoError(t, err)
			require.NoError(t, feed.Close(sqltest.Context(t)))
			published := make(chan error, 1)
			var tried, safe atomic.Int64
			go func() {
				for {
					tried.Add(1)
					if err := transport.Publish(sqltest.Context(t), "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")); err != nil {
						published <- err
						return
					}
					safe.Add(1)
				}
			}()
			require.Eventually(t, func() bool { return safe.Load() > 0 }, sqltest.Patience, time.Millisecond)
			proxy.Stall()
			before := int64(-1)
			require.Eventually(t, func() bool {
				now := safe.Load()
				stands := now == before && tried.Load() == now+1
				before = now
				return stands
			}, sqltest.Patience, 500*time.Millisecond, "a publish is under way")
			ctx, cancel := context.WithTimeout(sqltest.Context(t), time.Second)
			defer cancel()
			_ = transport.Close(ctx)
			proxy.Resume()
			err = <-published
			var unknown *driver.PublishError
			require.ErrorAs(t, err, &unknown)
			require.Len(t, unknown.Failed, 1)
			require.NotErrorIs(t, err, driver.ErrClosed)
		})
	}
}
