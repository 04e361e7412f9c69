package outbox_test

import (
	stdsql "database/sql"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/sql/internal/sqltest"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// TestInTx_afterADeadlockThatWasSwallowed checks that publishing fails after an ignored deadlock. Otherwise the message
// would be committed outside of the transaction.
func TestInTx_afterADeadlockThatWasSwallowed(t *testing.T) {
	t.Parallel()
	s := onMySQL(t)
	db, o := s.Service(t), s.outbox(t, outbox.Config{})
	s.Tables(t, db)
	ctx := sqltest.Context(t)
	var version string
	require.NoError(t, db.QueryRowContext(ctx, "SELECT version()").Scan(&version))
	if !isMariaDB(version) {
		t.Skip("MySQL does not tell whether a transaction is open")
	}
	tx := sqltest.Begin(t, db, stdsql.LevelDefault)
	sqltest.Deadlock(t, s.System, db, tx)
	require.ErrorContains(t, o.PublishTx(ctx, tx, "order.paid.v1", sqltest.NewMessage("order.paid.v1", "m")), "the database has rolled the transaction back")
	require.NoError(t, tx.Rollback())
	require.Zero(t, sqltest.Count(t, db, "SELECT count(*) FROM "+s.Named("leat_messages")))
}

func isMariaDB(version string) bool { return strings.Contains(version, "MariaDB") }
