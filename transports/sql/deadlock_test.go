package sql_test

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/sql"
)

// deadlock runs an update in tx that fails with a deadlock, for which the server rolls tx back. The other transaction
// is rolled back at the end.
func deadlock(t *testing.T, s system, db *stdsql.DB, tx *stdsql.Tx) {
	ctx := testContext(t)
	other := begin(t, db, stdsql.LevelDefault)
	defer func() { _ = other.Rollback() }()
	add := func(tx *stdsql.Tx, account int) error {
		_, err := tx.ExecContext(ctx, fmt.Sprintf("UPDATE %s SET cents = cents + 100 WHERE id = %d", s.named("accounts"), account))
		return err
	}
	for range 5 { // it has more changes, so InnoDB rolls back the other one
		_, err := other.ExecContext(ctx, "INSERT INTO "+s.named("bookings")+" VALUES ('a'), ('b'), ('c'), ('d')")
		require.NoError(t, err)
	}
	require.NoError(t, add(other, 2))
	require.NoError(t, add(tx, 1))
	waiting := make(chan error, 1)
	go func() { waiting <- add(other, 1) }()
	s.waitBlocked(t, db, "UPDATE accounts")
	err := add(tx, 2)
	var failed *mysql.MySQLError
	require.True(t, errors.As(err, &failed) && failed.Number == 1213, "%v", err)
	require.NoError(t, <-waiting)
}

// TestInbox_aDeadlockThatTheHandlerSwallows checks that Once returns an error if the handler ignores a deadlock, for which
// MySQL has rolled back the whole transaction with the record of the message.
func TestInbox_aDeadlockThatTheHandlerSwallows(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	db := s.service(t)
	s.tables(t, db)
	inbox := s.inbox(t, db, sql.InboxConfig{})
	_, err := inbox.Once(testContext(t), "shop.ledger", "m-1", func(_ context.Context, tx *stdsql.Tx) error {
		deadlock(t, s, db, tx)
		return nil
	})
	require.ErrorContains(t, err, "the database has rolled the transaction back, for a deadlock whose error was not returned")
	require.Zero(t, count(t, db, "SELECT count(*) FROM "+s.named("leat_inbox")))
	seen, err := inbox.Once(testContext(t), "shop.ledger", "m-1", func(ctx context.Context, tx *stdsql.Tx) error { return s.book(ctx, tx, 1, "m-1") })
	require.NoError(t, err)
	require.False(t, seen)
}

// TestInTx_afterADeadlockThatWasSwallowed checks that publishing fails after an ignored deadlock. Otherwise the message
// would be committed outside of the transaction.
func TestInTx_afterADeadlockThatWasSwallowed(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	db, o := s.service(t), s.outbox(t, sql.OutboxConfig{})
	s.tables(t, db)
	ctx := testContext(t)
	var version string
	require.NoError(t, db.QueryRowContext(ctx, "SELECT version()").Scan(&version))
	if !isMariaDB(version) {
		t.Skip("MySQL does not tell whether a transaction is open")
	}
	tx := begin(t, db, stdsql.LevelDefault)
	deadlock(t, s, db, tx)
	require.ErrorContains(t, o.PublishTx(ctx, tx, "order.paid.v1", newMessage("order.paid.v1", "m")), "the database has rolled the transaction back")
	require.NoError(t, tx.Rollback())
	require.Zero(t, count(t, db, "SELECT count(*) FROM "+s.named("leat_messages")))
}

func isMariaDB(version string) bool { return strings.Contains(version, "MariaDB") }
