package queue

import (
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A consumer may find the group just before an operator removes it.
func TestRemoveGroup_consumerSubscribesMeanwhile(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		s := transport
		if s.core.Name == sqlconfig.SQLite {
			t.Skip("it has one writer at a time")
		}
		ctx := t.Context()
		sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1", "order.void.v1"}, Concurrency: 1, Order: driver.OrderedByKey}
		g, err := s.core.groups.ensure(ctx, sub.Group, sub.Order)
		require.NoError(t, err)
		require.NoError(t, s.core.groups.addTopics(ctx, g, sub.Topics[:1]))

		subscribed := make(chan error, 1)
		require.NoError(t, s.core.groups.locked(ctx, s.core.Pool, g, func(tx lockedGroup) error {
			go func() {
				_, err := transport.Subscribe(ctx, sub)
				subscribed <- err
			}()
			require.Eventually(t, func() bool {
				topics, err := s.core.groups.topics(ctx, g)
				return err == nil && len(topics) == 2
			}, time.Minute, 5*time.Millisecond, "the consumer has found the group")
			for _, query := range []string{`DELETE FROM {groups} WHERE id = ?`, `DELETE FROM {turns} WHERE group_id = ?`} {
				if _, err := tx.Exec(ctx, s.core.SQL(query), g.id); err != nil {
					return err
				}
			}
			return nil
		}))
		require.NoError(t, <-subscribed)
		again, there, err := s.core.groups.find(ctx, sub.Group)
		require.NoError(t, err)
		require.True(t, there)
		require.NotEqual(t, g.id, again.id)
		topics, err := s.core.groups.topics(ctx, again)
		require.NoError(t, err)
		require.Equal(t, sub.Topics, topics)
		require.ErrorIs(t, transport.RemoveGroup(ctx, sub.Group), driver.ErrConsumed)
	})
}

func TestRemoveGroup_refusesOutboxes(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		_, err := transport.core.groups.ensure(t.Context(), "shop.outbox", driver.OrderedByKey)
		require.NoError(t, err)
		require.ErrorContains(t, transport.RemoveGroup(t.Context(), "shop.outbox"), "is an outbox")
		_, there, err := transport.core.groups.find(t.Context(), "shop.outbox")
		require.NoError(t, err)
		require.True(t, there)
	})
}

// The tables have rows of the group that no interface shows.
func TestRemoveGroup_leavesNoRow(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		s, ctx := transport, t.Context()
		receiver, err := transport.Subscribe(ctx, driver.Subscription{
			Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1, Order: driver.OrderedStrictly, Park: true,
		})
		require.NoError(t, err)
		for _, id := range []string{"a", "b"} {
			require.NoError(t, transport.Publish(ctx, "order.paid.v1", message.NewMessage(id, nil)))
		}
		d, err := receiver.Next(ctx)
		require.NoError(t, err)
		require.NoError(t, d.Settler.Poison(ctx, driver.Fault{Class: "test"}))
		require.NoError(t, receiver.Close(ctx))
		g, _, err := s.core.groups.find(ctx, "shop.ledger")
		require.NoError(t, err)
		require.Eventually(t, func() bool { return transport.RemoveGroup(ctx, g.name) == nil }, time.Minute, 5*time.Millisecond)
		for _, table := range []string{"subscriptions", "messages", "holds", "consumers", "turns"} {
			n, _, err := database.Number(ctx, s.core.Pool, s.core.SQL(`SELECT count(*) FROM {`+table+`} WHERE group_id = ?`), g.id)
			require.NoError(t, err)
			require.Zero(t, n, table)
		}
	})
}

// A consumer whose lease has ended, as that of a process which stood still, may find its group removed.
func TestRemoveGroup_isNoticedByAConsumerThatStoodStill(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, transport *Transport) {
		ctx := t.Context()
		all := consumers{DB: transport.core.DB, place: "test"}
		var both []*consumer
		for _, name := range []string{"shop.ledger", "shop.mail"} {
			g, err := transport.core.groups.ensure(ctx, name, driver.Unordered)
			require.NoError(t, err)
			both = append(both, newConsumer(newConsumerID(), g, subscriber{}))
		}
		require.NoError(t, transport.RemoveGroup(ctx, "shop.ledger"))
		missing := all.renew(ctx, transport.core.Pool, both)
		require.ErrorIs(t, missing, errRemoved)
		require.ErrorContains(t, missing, "shop.ledger: ")
		live, err := all.unexpired(ctx)
		require.NoError(t, err)
		require.Equal(t, []int64{both[1].id}, live, "the other group's lease is renewed")

		require.True(t, transport.Health().Connected)
		transport.core.leases.misses(missing)
		require.ErrorIs(t, transport.Health().Err, errRemoved)
		transport.core.Link.Works()
		require.False(t, transport.Health().Connected, "until no group is missing")
		transport.core.leases.misses(nil)
		require.True(t, transport.Health().Connected)
	})
}
