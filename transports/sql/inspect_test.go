package sql_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestDiagnose_listsMissingRights runs Diagnose as a user with the right to read only.
func TestDiagnose_listsMissingRights(t *testing.T) {
	t.Parallel()
	s := onPostgres(t)
	sqltest.CloseNow(t, s.Open(t))
	name := fmt.Sprintf("leat_test_%08x", rand.Uint32())
	db := s.DB(t)
	sqltest.Run(t, db, "CREATE ROLE "+name+" LOGIN PASSWORD 'leat'")
	t.Cleanup(func() {
		sqltest.Run(t, db, "DROP OWNED BY "+name)
		sqltest.Run(t, db, "DROP ROLE "+name)
	})
	sqltest.Run(t, db, "GRANT USAGE ON SCHEMA "+s.Config.Schema+" TO "+name)
	sqltest.Run(t, db, "GRANT SELECT ON ALL TABLES IN SCHEMA "+s.Config.Schema+" TO "+name)
	s.URL = as(t, testenv.WithOption(t, s.URL, "migrate", "check"), name)

	findings := make(map[string]driver.Finding)
	for _, f := range s.Start(t).(driver.Inspector).Diagnose(sqltest.Context(t)) {
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
		transport := s.Start(t, "keep_handled", "1s") // and so cleans up every second
		feed, err := transport.Subscribe(sqltest.Context(t), driver.Subscription{Group: "leat-tail.dead", Topics: []string{"order.>"}, Concurrency: 1})
		require.NoError(t, err)
		require.NoError(t, feed.Close(sqltest.Context(t)))
		require.NoError(t, transport.Publish(sqltest.Context(t), "order.paid.v1", message.NewMessage("m", nil)), "it has a group")

		db := s.DB(t)
		rows := func(name string) int { return sqltest.Count(t, db, "SELECT count(*) FROM "+s.Table(name)) }
		require.Equal(t, 1, rows("messages"))
		sqltest.Run(t, db, "UPDATE "+s.Table("groups")+" SET created_at = 0")
		require.Eventually(t, func() bool {
			return rows("messages")+rows("groups")+rows("subscriptions")+rows("turns") == 0
		}, sqltest.Patience, 10*time.Millisecond)
		require.ErrorIs(t, transport.Publish(sqltest.Context(t), "order.paid.v1", message.NewMessage("m", nil)), driver.ErrUnroutable)
	})
}

// TestTail_endsWhenOthersHaveTakenItForDead checks that a tail ends with an error if another process has removed its group.
func TestTail_endsWhenOthersHaveTakenItForDead(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport, db := s.Start(t, "lease", "1s"), s.DB(t)
		ended := make(chan error, 1)
		go func() {
			ended <- transport.(driver.Inspector).Tail(sqltest.Context(t), "order.>", func(string, *message.Message) error { return nil })
		}()
		table := s.Table("subscriptions")
		require.Eventually(t, func() bool { return sqltest.Count(t, db, "SELECT count(*) FROM "+table) == 1 }, sqltest.Patience, 10*time.Millisecond)
		sqltest.Run(t, db, "UPDATE "+table+" SET pattern = '', depth = 0, matches = ''") // as other processes do
		require.ErrorContains(t, <-ended, "start it again")
	})
}

// TestTail_aGroupWhoseNameIsOnlyLikeATails checks that a group whose name differs from a tail's only in case keeps its messages.
func TestTail_aGroupWhoseNameIsOnlyLikeATails(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport, ctx := s.Start(t, "keep_handled", "1s"), sqltest.Context(t) // and so cleans up every second
		for _, group := range []string{"Leat-Tail.shop", "leat-tail.dead"} {
			feed, err := transport.Subscribe(ctx, sqltest.Subscription(group, 1, "order.paid.v1"))
			require.NoError(t, err)
			require.NoError(t, feed.Close(ctx))
		}
		require.NoError(t, transport.Publish(ctx, "order.paid.v1", message.NewMessage("m", nil)))
		db := s.DB(t)
		sqltest.Run(t, db, "UPDATE "+s.Table("groups")+" SET created_at = 0")
		named := func(name string) string { return " FROM " + s.Table("groups") + " WHERE name = '" + name + "'" }
		require.Eventually(t, func() bool { return sqltest.Count(t, db, "SELECT count(*)"+named("leat-tail.dead")) == 0 }, sqltest.Patience, 10*time.Millisecond)
		kept := "SELECT count(*) FROM " + s.Table("messages") + " WHERE group_id IN (SELECT id" + named("Leat-Tail.shop") + ")"
		require.Equal(t, 1, sqltest.Count(t, db, kept), "it was cleared away as well")
	})
}
