package sql_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/sql"
)

// TestAutocommit_offOnTheServer checks that leat's own connections commit, whatever the server's default is.
func TestAutocommit_offOnTheServer(t *testing.T) {
	t.Parallel()
	server := newPrivateMariaDB(t, "--autocommit=0")
	s, ctx := server.system(), testContext(t)
	consumer := s.start(t)
	feed, err := consumer.Subscribe(ctx, subscription("shop.ledger", 1, "order.paid.v1"))
	require.NoError(t, err)
	publisher := s.open(t)
	require.NoError(t, publisher.Publish(ctx, "order.paid.v1", newMessage("order.paid.v1", "m")))
	closeNow(t, publisher)
	require.NoError(t, next(t, feed, patience).Settler.Ack())
}

// TestAutocommit_offOnAUsersPool expects an error when the transport, the outbox or the inbox opens, because their
// statements outside of a transaction would never be committed.
func TestAutocommit_offOnAUsersPool(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	closeNow(t, s.open(t)) // creates the tables
	pool, ctx := s.stdPool(t, "autocommit", "0"), testContext(t)
	const want = "autocommit is off on the pool's connections, so that nothing would be committed; set autocommit=1"
	_, err := sql.New(ctx, pool, s.cfg)
	require.ErrorContains(t, err, want)
	_, err = sql.NewOutbox(ctx, pool, sql.OutboxConfig{Service: "shop", Tables: s.cfg})
	require.ErrorContains(t, err, want)
	_, err = sql.NewInbox(ctx, pool, sql.InboxConfig{Tables: s.cfg})
	require.ErrorContains(t, err, want)
}
