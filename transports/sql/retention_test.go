package sql_test

import (
	stdsql "database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestRetention checks that handled and poisoned messages are deleted when their time is over, and no others.
func TestRetention(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := testContext(t)
		transport := s.start(t, "keep_handled", "1h", "keep_poisoned", "1h")
		sub := subscription("shop.ledger", 5, "order.paid.v1")
		feed, err := transport.Subscribe(ctx, sub)
		require.NoError(t, err)
		waiting, err := transport.Subscribe(ctx, subscription("shop.waiting", 1, "order.paid.v1"))
		require.NoError(t, err)
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", newMessages(5)...))
		var out []*driver.Delivery
		for range 5 {
			out = append(out, next(t, feed, patience))
		}
		require.NoError(t, out[0].Settler.Ack())
		require.NoError(t, out[1].Settler.Ack())
		require.NoError(t, out[2].Settler.Poison(ctx, driver.Fault{Text: "test"}))
		require.NoError(t, out[3].Settler.Redeliver(time.Hour))
		db := s.db(t)
		number := func(states string) int {
			return count(t, db, fmt.Sprintf("SELECT count(*) FROM %s WHERE state IN (%s)", s.table("messages"), states))
		}
		require.Eventually(t, func() bool { return number("2, 3") == 3 }, patience, 5*time.Millisecond, "they are kept at first")
		short := s.start(t, "keep_handled", "1s", "keep_poisoned", "1s") // keeps them for a short time
		_, err = short.Subscribe(ctx, sub)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return number("2, 3") == 0 }, patience, 20*time.Millisecond, "they are kept for ever")
		n, err := transport.PoisonQueue(sub.Group).Len(ctx)
		require.NoError(t, err)
		require.Zero(t, n)
		require.Equal(t, 7, number("0, 1"), "one delayed, one out, and what the other group has not handled")
		require.NoError(t, out[4].Settler.Ack())
		for range 5 {
			require.NoError(t, next(t, waiting, patience).Settler.Ack())
		}
	})
}

// TestRetention_leavesGroupsOfOthersAlone checks that services that share tables keep only their own messages by their own
// settings.
func TestRetention_leavesGroupsOfOthersAlone(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		ctx := testContext(t)
		// settle leaves one handled and one poisoned message in a group.
		settle := func(transport driver.Transport, group string) {
			feed, err := transport.Subscribe(ctx, subscription(group, 2, "order.paid.v1"))
			require.NoError(t, err)
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", newMessages(2)...))
			require.NoError(t, next(t, feed, patience).Settler.Ack())
			require.NoError(t, next(t, feed, patience).Settler.Poison(ctx, driver.Fault{Text: "test"}))
			require.NoError(t, feed.Close(ctx))
		}
		db := s.db(t)
		kept := func(group string) int {
			return count(t, db, fmt.Sprintf("SELECT count(*) FROM %s m JOIN %s g ON g.id = m.group_id WHERE m.state IN (2, 3) AND g.name = '%s'",
				s.table("messages"), s.table("groups"), group))
		}
		settle(s.start(t, "keep_handled", "1h"), "billing.ledger") // poisoned messages are kept until somebody drops them
		require.Eventually(t, func() bool { return kept("billing.ledger") == 2 }, patience, 5*time.Millisecond)
		mail := s.start(t, "keep_handled", "1s", "keep_poisoned", "1s")
		settle(mail, "mail.sender")
		_, err := mail.Subscribe(ctx, subscription("mail.sender", 1, "order.paid.v1"))
		require.NoError(t, err)
		require.Eventually(t, func() bool { return kept("mail.sender") == 0 }, patience, 20*time.Millisecond, "mail's own are kept for ever")
		require.Equal(t, 2, kept("billing.ledger"))
	})
}

// TestRetention_tablesDoNotGrow checks that the space of handled messages is reused.
func TestRetention_tablesDoNotGrow(t *testing.T) {
	t.Parallel()
	for name, sizes := range map[string]func(t *testing.T) (system, func(*stdsql.DB) int){
		"postgres": func(t *testing.T) (system, func(*stdsql.DB) int) {
			// An open transaction anywhere in the database keeps VACUUM from removing deleted rows.
			s := newPrivatePostgres(t).system()
			return s, func(db *stdsql.DB) int {
				run(t, db, "VACUUM "+s.table("messages")) // does not wait for autovacuum
				return count(t, db, "SELECT pg_total_relation_size('"+s.table("messages")+"')")
			}
		},
		"sqlite": func(t *testing.T) (system, func(*stdsql.DB) int) {
			return onSQLite(t), func(db *stdsql.DB) int { return 4096 * count(t, db, "PRAGMA page_count") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, size := sizes(t)
			transport := s.start(t)
			feed, err := transport.Subscribe(testContext(t), subscription("shop.ledger", 8, "order.paid.v1"))
			require.NoError(t, err)
			db := s.db(t)
			var after []int
			for round := range 15 {
				ids := newMessages(2000)
				require.NoError(t, transport.Publish(testContext(t), "order.paid.v1", ids...))
				for range ids {
					require.NoError(t, next(t, feed, patience).Settler.Ack())
				}
				require.Eventually(t, func() bool { return count(t, db, "SELECT count(*) FROM "+s.table("messages")) == 0 }, patience, time.Millisecond)
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
		transport := s.open(t)
		_, err := transport.Subscribe(testContext(t), subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		closeNow(t, transport)
	}
	require.Zero(t, count(t, s.db(t), "SELECT count(*) FROM leat_consumers"))
}
