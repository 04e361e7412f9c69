package sql_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestDiagnose_listsMissingRights runs Diagnose as a user with the right to read only.
func TestDiagnose_listsMissingRights(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	closeNow(t, s.open(t))
	name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	db := s.db(t)
	run(t, db, "CREATE ROLE "+name+" LOGIN PASSWORD 'leat'")
	t.Cleanup(func() {
		run(t, db, "DROP OWNED BY "+name)
		run(t, db, "DROP ROLE "+name)
	})
	run(t, db, "GRANT USAGE ON SCHEMA "+s.cfg.Schema+" TO "+name)
	run(t, db, "GRANT SELECT ON ALL TABLES IN SCHEMA "+s.cfg.Schema+" TO "+name)
	s.url = as(t, withOption(t, s.url, "migrate", "check"), name)

	findings := make(map[string]driver.Finding)
	for _, f := range s.start(t).(driver.Inspector).Diagnose(testContext(t)) {
		findings[f.Check] = f
	}
	messages := findings["rights on leat_messages"]
	require.ErrorContains(t, messages.Err, "permission denied")
	require.Contains(t, messages.Fix, "GRANT INSERT, UPDATE, DELETE ON ")
	require.NoError(t, findings["reach the database"].Err)
	require.Contains(t, findings["rights on leat_messages_id_seq"].Fix, "GRANT USAGE, SELECT ON ")
}

// TestTail_isRemovedAfterItsProcessDies checks that the group of a killed process's tail is removed.
func TestTail_isRemovedAfterItsProcessDies(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.start(t, "keep_handled", "1s") // and so cleans up every second
		feed, err := transport.Subscribe(testContext(t), driver.Subscription{Group: "leat-tail.dead", Topics: []string{"order.>"}, Concurrency: 1})
		require.NoError(t, err)
		require.NoError(t, feed.Close(testContext(t)))
		require.NoError(t, transport.Publish(testContext(t), "order.paid.v1", message.NewMessage("m", nil)), "it has a group")

		db := s.db(t)
		rows := func(name string) int { return count(t, db, "SELECT count(*) FROM "+s.table(name)) }
		require.Equal(t, 1, rows("messages"))
		run(t, db, "UPDATE "+s.table("groups")+" SET created_at = 0")
		require.Eventually(t, func() bool {
			return rows("messages")+rows("groups")+rows("subscriptions")+rows("turns") == 0
		}, patience, 10*time.Millisecond)
		require.ErrorIs(t, transport.Publish(testContext(t), "order.paid.v1", message.NewMessage("m", nil)), driver.ErrUnroutable)
	})
}

// TestTail_endsWhenOthersHaveTakenItForDead checks that a tail ends with an error if another process has removed its group.
func TestTail_endsWhenOthersHaveTakenItForDead(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport, db := s.start(t, "lease", "1s"), s.db(t)
		ended := make(chan error, 1)
		go func() {
			ended <- transport.(driver.Inspector).Tail(testContext(t), "order.>", func(string, *message.Message) error { return nil })
		}()
		table := s.table("subscriptions")
		require.Eventually(t, func() bool { return count(t, db, "SELECT count(*) FROM "+table) == 1 }, patience, 10*time.Millisecond)
		run(t, db, "UPDATE "+table+" SET pattern = '', depth = 0, matches = ''") // as other processes do
		require.ErrorContains(t, <-ended, "start it again")
	})
}

// TestTail_aGroupWhoseNameIsOnlyLikeATails checks that a group whose name differs from a tail's only in case keeps its messages.
func TestTail_aGroupWhoseNameIsOnlyLikeATails(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport, ctx := s.start(t, "keep_handled", "1s"), testContext(t) // and so cleans up every second
		for _, group := range []string{"Leat-Tail.shop", "leat-tail.dead"} {
			feed, err := transport.Subscribe(ctx, subscription(group, 1, "order.paid.v1"))
			require.NoError(t, err)
			require.NoError(t, feed.Close(ctx))
		}
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", message.NewMessage("m", nil)))
		db := s.db(t)
		run(t, db, "UPDATE "+s.table("groups")+" SET created_at = 0")
		named := func(name string) string { return " FROM " + s.table("groups") + " WHERE name = '" + name + "'" }
		require.Eventually(t, func() bool { return count(t, db, "SELECT count(*)"+named("leat-tail.dead")) == 0 }, patience, 10*time.Millisecond)
		kept := "SELECT count(*) FROM " + s.table("messages") + " WHERE group_id IN (SELECT id" + named("Leat-Tail.shop") + ")"
		require.Equal(t, 1, count(t, db, kept), "it was cleared away as well")
	})
}
