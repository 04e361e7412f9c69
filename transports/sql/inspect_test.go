package sql_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// TestDiagnoseNamesTheRightsThatAreMissing is as a user who may only read.
func TestDiagnoseNamesTheRightsThatAreMissing(t *testing.T) {
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

// TestATailThatDiedIsClearedAway leaves a tail's group behind, as a killed process does.
func TestATailThatDiedIsClearedAway(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.start(t, "keep_handled", "1s") // and so cleans up every second
		feed, err := transport.Subscribe(testContext(t), driver.Subscription{Group: "leat-tail.dead", Topics: []string{"order.>"}, Concurrency: 1})
		require.NoError(t, err)
		require.NoError(t, feed.Close(testContext(t)))
		require.NoError(t, transport.Publish(testContext(t), "order.paid.v1", message.NewMessage("m", nil)), "it has a group")

		db := s.db(t)
		table := func(name string) string {
			if s.cfg.Schema != "" {
				return s.cfg.Schema + ".leat_" + name
			}
			return "leat_" + name
		}
		count := func(from string) (n int) {
			require.NoError(t, db.QueryRowContext(context.Background(), "SELECT count(*) FROM "+from).Scan(&n))
			return n
		}
		require.Equal(t, 1, count(table("messages")))
		run(t, db, "UPDATE "+table("groups")+" SET created_at = 0")
		require.Eventually(t, func() bool {
			return count(table("messages"))+count(table("groups"))+count(table("subscriptions"))+count(table("turns")) == 0
		}, patience, 10*time.Millisecond)
		require.ErrorIs(t, transport.Publish(testContext(t), "order.paid.v1", message.NewMessage("m", nil)), driver.ErrUnroutable)
	})
}
