package sql_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestClock_skewedClocksChangeNothing checks leases, delays and scheduled messages while the clocks of the processes and the
// database differ by an hour, in both directions. The unit tests check that no statement contains a time of the
// process, so each process may have another error.
func TestClock_skewedClocksChangeNothing(t *testing.T) {
	t.Parallel()
	for _, hours := range []int{-1, 1} {
		t.Run(fmt.Sprintf("by %d hours", hours), func(t *testing.T) {
			t.Parallel()
			const lease = 30 * time.Second // a busy machine may renew it some seconds late
			s := onPostgres(t)
			db := s.DB(t)
			sqltest.Run(t, db, fmt.Sprintf(`CREATE FUNCTION %s.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS
				$$ SELECT pg_catalog.statement_timestamp() + interval '%d hours' $$`, s.Config.Schema, hours))
			s.URL = testenv.WithOption(t, s.URL, "search_path", s.Config.Schema+",pg_catalog")
			options := []string{"lease", lease.String(), "keep_poisoned", "30m", "keep_handled", "30m"}
			one, other := s.Start(t, options...), s.Start(t, options...)
			require.Equal(t, hours, sqltest.Count(t, s.DB(t), `SELECT round(extract(epoch FROM statement_timestamp() - now()) / 3600)`), "the clock is not wrong")
			ctx := sqltest.Context(t)
			sub := sqltest.Subscription("shop.ledger", 1, "order.paid.v1")
			feed, err := one.Subscribe(ctx, sub)
			require.NoError(t, err)

			began := time.Now()
			late := sqltest.NewMessage("order.paid.v1", "late")
			late.Metadata[driver.HeaderDeliverAt] = began.Add(400 * time.Millisecond).Format(time.RFC3339Nano)
			require.NoError(t, one.Publish(ctx, "order.paid.v1", late))
			require.NoError(t, one.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "held")))
			held, d := sqltest.Next(t, feed, sqltest.Patience), sqltest.Next(t, feed, sqltest.Patience) // an hour is longer than patience
			require.GreaterOrEqual(t, time.Since(began).Milliseconds(), int64(399))
			if driver.MessageID(held.Message) == "late" { // a busy machine may take longer to publish the other
				held, d = d, held
			}
			require.Equal(t, []string{"held", "late"}, []string{driver.MessageID(held.Message), driver.MessageID(d.Message)})

			began = time.Now()
			require.NoError(t, d.Settler.Redeliver(400*time.Millisecond))
			d = sqltest.Next(t, feed, sqltest.Patience)
			require.Equal(t, 2, d.Attempt)
			require.GreaterOrEqual(t, time.Since(began).Milliseconds(), int64(399))
			require.NoError(t, d.Settler.Poison(ctx, driver.Fault{Text: "test"}))

			// The unsettled message is not redelivered while its consumer's lease is renewed, and the others are delivered.
			l, stop := load(t, other, other, sub)
			l.waitAccepted(t, 1000)
			stop()
			_, missing, twice := l.balance()
			require.Zero(t, missing)
			require.Zero(t, twice)
			require.Zero(t, l.deliveries("held"))
			s.awaitRenewal(t, db, "held")
			free, err := other.Subscribe(ctx, sub)
			require.NoError(t, err)
			waiting, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			_, err = free.Next(waiting)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NoError(t, held.Settler.Ack())
			n, err := one.PoisonQueue(sub.Group).Len(ctx)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	}
}
