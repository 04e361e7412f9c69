package sql_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/inbox"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// TestAutocommit_offOnTheServer checks that leat's own connections commit, whatever the server's default is.
func TestAutocommit_offOnTheServer(t *testing.T) {
	t.Parallel()
	server := sqltest.NewPrivateMariaDB(t, "--autocommit=0")
	s, ctx := system{server.System()}, sqltest.Context(t)
	consumer := s.Start(t)
	feed, err := consumer.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
	require.NoError(t, err)
	publisher := s.Open(t)
	require.NoError(t, publisher.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")))
	sqltest.CloseNow(t, publisher)
	require.NoError(t, sqltest.Next(t, feed, sqltest.Patience).Settler.Ack())
}

// TestAutocommit_offOnAUsersPool expects an error when the transport, the outbox or the inbox opens, because their
// statements outside of a transaction would never be committed.
func TestAutocommit_offOnAUsersPool(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	sqltest.CloseNow(t, s.Open(t)) // creates the tables
	pool, ctx := s.stdPool(t, "autocommit", "0"), sqltest.Context(t)
	const want = "autocommit is off on the pool's connections, so that nothing would be committed; set autocommit=1"
	_, err := sql.New(ctx, pool, s.Config)
	require.ErrorContains(t, err, want)
	_, err = outbox.New(ctx, pool, outbox.Config{Service: "shop", Tables: s.Config})
	require.ErrorContains(t, err, want)
	_, err = inbox.New(ctx, pool, inbox.Config{Tables: s.Config})
	require.ErrorContains(t, err, want)
}
