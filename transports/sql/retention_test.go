package sql_test

import (
	stdsql "database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestRetention checks that handled and poisoned messages are deleted when their time is over, and no others.
func TestRetention(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		transport := s.Start(t, "keep_handled", "1h", "keep_poisoned", "1h")
		sub := sqltest.Subscription("shop.ledger", 5, "order.paid.v1")
		feed, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		waiting, err := transport.Subscribe(ctx, sqltest.Subscription("shop.waiting", 1, "order.paid.v1"))
		require.NoError(t, err)
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", newMessages(5)...))
		var out []*driver.Delivery
		for range 5 {
			out = append(out, sqltest.Next(t, feed, sqltest.Patience))
		}
		require.NoError(t, out[0].Settler.Ack())
		require.NoError(t, out[1].Settler.Ack())
		require.NoError(t, out[2].Settler.Poison(ctx, driver.Fault{Text: "test"}))
		require.NoError(t, out[3].Settler.Redeliver(time.Hour))
		db := s.DB(t)
		number := func(states string) int {
			return sqltest.Count(t, db, fmt.Sprintf("SELECT count(*) FROM %s WHERE state IN (%s)", s.Table("messages"), states))
		}
		require.Eventually(t, func() bool { return number("2, 3") == 3 }, sqltest.Patience, 5*time.Millisecond, "they are kept at first")
		short := s.Start(t, "keep_handled", "1s", "keep_poisoned", "1s") // keeps them for a short time
		_, err = short.Subscribe(ctx, sub)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return number("2, 3") == 0 }, sqltest.Patience, 20*time.Millisecond, "they are kept for ever")
		n, err := transport.PoisonQueue(sub.Group).Len(ctx)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Equal(t, 7, number("0, 1"), "one delayed, one out, and what the other group has not handled")
		require.NoError(t, out[4].Settler.Ack())
		for range 5 {
			require.NoError(t, sqltest.Next(t, waiting, sqltest.Patience).Settler.Ack())
		}
	})
}

// TestRetention_leavesGroupsOfOthersAlone checks that services that share tables keep only their own messages by their own
// settings.
func TestRetention_leavesGroupsOfOthersAlone(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := sqltest.Context(t)
		// settle leaves one handled and one poisoned message in a group.
		settle := func(transport driver.Transport, group string) {
			feed, err := transport.Subscribe(ctx, sqltest.Subscription(group, 2, "order.paid.v1"))
			require.NoError(t, err)
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", newMessages(2)...))
			require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
			require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Poison(ctx, driver.Fault{Text: "test"}))
			require.NoError(t, feed.Close(ctx))
		}
		db := s.DB(t)
		kept := func(group string) int {
			return sqltest.Count(t, db, fmt.Sprintf("SELECT count(*) FROM %s m JOIN %s g ON g.id = m.group_id WHERE m.state IN (2, 3) AND g.name = '%s'",
				s.Table("messages"), s.Table("groups"), group))
		}
		settle(s.Start(t, "keep_handled", "1h"), "billing.ledger") // poisoned messages are kept until somebody drops them
		require.Eventually(t, func() bool { return kept("billing.ledger") == 2 }, sqltest.Patience, 5*time.Millisecond)
		mail := s.Start(t, "keep_handled", "1s", "keep_poisoned", "1s")
		settle(mail, "mail.sender")
		_, err := mail.Subscribe(ctx, sqltest.Subscription("mail.sender", 1, "order.paid.v1"))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return kept("mail.sender") == 0 }, sqltest.Patience, 20*time.Millisecond, "mail's own are kept for ever")
		require.Equal(t, 2, kept("billing.ledger"))
	})
}

// TestRetention_tablesDoNotGrow checks that the space of handled messages is reused.
func TestRetention_tablesDoNotGrow(t *testing.T) {
	t.Parallel()
	for name, sizes := range map[string]func(t *testing.T) (system, func(*stdsql.DB) int){
		"postgres": func(t *testing.T) (system, func(*stdsql.DB) int) {
			// An open transaction anywhere in the database keeps VACUUM from removing deleted rows.
			s := system{sqltest.NewPrivatePostgres(t).System()}
			return s, func(db *stdsql.DB) int {
				sqltest.Run(t, db, "VACUUM "+s.Table("messages")) // does not wait for autovacuum
				return sqltest.Count(t, db, "SELECT pg_total_relation_size('"+s.Table("messages")+"')")
			}
		},
		"sqlite": func(t *testing.T) (system, func(*stdsql.DB) int) {
			return onSQLite(t), func(db *stdsql.DB) int { return 4096 * sqltest.Count(t, db, "PRAGMA page_count") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, size := sizes(t)
			transport := s.Start(t)
			feed, err := transport.Subscribe(sqltest.Context(t), sqltest.Subscription("shop.ledger", 8, "order.paid.v1"))
			require.NoError(t, err)
			db := s.DB(t)
			var after []int
			for round := range 15 {
				ids := newMessages(2000)
				require.NoError(t, transport.Publish(sqltest.Context(t), "order.paid.v1", ids...))
				for range ids {
					require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
				}
				require.Eventually(t, func() bool { return sqltest.Count(t, db, "SELECT count(*) FROM "+s.Table("messages")) == 0 }, sqltest.Patience, time.Millisecond)
				after = append(after, size(db))
				if round >= 7 && after[round] <= after[round-7]*5/4 {
					t.Logf("bytes after each round: %d", after)
					return
				}
			}
			t.Errorf("the table grows: %d bytes after each round", after) // once it may, if a snapshot is open while it is vacuumed
		})
	}
}

// TestRetention_deletesLeasesOfClosedConsumers checks that the leases of closed receivers are deleted.
func TestRetention_deletesLeasesOfClosedConsumers(t *testing.T) {
	t.Parallel()
	s := onSQLite(t)
	for range 3 {
		transport := s.Open(t)
		_, err := transport.Subscribe(sqltest.Context(t), sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		sqltest.CloseNow(t, transport)
	}
	require.Zero(t, sqltest.Count(t, s.DB(t), "SELECT count(*) FROM leat_consumers"))
}
