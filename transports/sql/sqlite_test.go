package sql_test

import (
	"context"
	stdsql "database/sql"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// TestSQLite_inTxBeforeTheFirstSubscription checks that a subscription returns an error with the fix while the caller's
// transaction is the writer, and does not wait for that transaction.
func TestSQLite_inTxBeforeTheFirstSubscription(t *testing.T) {
	t.Parallel()
	s, ctx := onSQLite(t), sqltest.Context(t)
	b, err := bus.New(s.Open(t), bus.Config{Service: "shop"})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	require.NoError(t, b.Handle(handlers.Func("ledger", func(context.Context, sqltest.Paid) error { return nil })))
	db := s.Service(t)
	tx := sqltest.Begin(t, db, stdsql.LevelDefault)
	err = b.InTx(tx).Publish(ctx, sqltest.Paid{OrderID: "1"})
	require.NoError(t, tx.Rollback())
	require.ErrorContains(t, err, "SQLite has one writer, which is the open transaction; run the bus or publish once before it begins")

	_ = b.Publish(ctx, sqltest.Paid{OrderID: "2"})
	tx = sqltest.Begin(t, db, stdsql.LevelDefault)
	require.NoError(t, b.InTx(tx).Publish(ctx, sqltest.Paid{OrderID: "3"}))
	require.NoError(t, tx.Commit())
}

// TestSQLite_fileIsGone checks that Publish fails, and that the health has the reason, if the file was deleted or replaced.
func TestSQLite_fileIsGone(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(t *testing.T, path string){
		"deleted": func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) },
		"replaced": func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path+".new", nil, 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, ctx := onSQLite(t), sqltest.Context(t)
			transport := s.Open(t)
			_, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
			require.NoError(t, err)
			publish := func() error { return transport.Publish(ctx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")) }
			require.NoError(t, publish())
			harm(t, s.URL[len("sqlite://"):])
			require.Eventually(t, func() bool { return publish() != nil }, sqltest.Patience, 10*time.Millisecond, "Publish says that it is safe")
			require.ErrorContains(t, publish(), "was deleted or replaced while it was open")
			health := transport.(driver.HealthChecker).Health()
			require.False(t, health.Connected)
			require.ErrorContains(t, health.Err, "was deleted or replaced")
			closing, cancel := context.WithTimeout(ctx, sqltest.Patience)
			defer cancel()
			_ = transport.Close(closing)
		})
	}
}
