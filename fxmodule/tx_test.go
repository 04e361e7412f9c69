package fxmodule_test

import (
	"context"
	stdsql "database/sql"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/fx"
	"go.uber.org/fx/fxtest"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/inbox"
	"github.com/leatbus/leat/transports/sql/outbox"
	_ "github.com/leatbus/leat/transports/sqlite"
)

// openFile returns a pool of the application's.
func openFile(t *testing.T) (db *stdsql.DB, path string) {
	path = filepath.Join(t.TempDir(), "shop.db")
	db, err := stdsql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(60000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	_, err = db.ExecContext(t.Context(), "CREATE TABLE orders (id TEXT NOT NULL)")
	require.NoError(t, err)
	return db, path
}

func insert(ctx context.Context, tx *stdsql.Tx, e orderPlaced) error {
	_, err := tx.ExecContext(ctx, "INSERT INTO orders VALUES (?)", e.ID)
	return err
}

// trade publishes with a row, and awaits the row of a handler in a transaction.
func trade(t *testing.T, db *stdsql.DB, options ...fx.Option) {
	j := newJournal()
	var b *bus.Bus
	app := fxtest.New(t, quiet(), fxmodule.Module, fx.Options(options...), fx.Populate(&b),
		fxmodule.HandleTx("ledger", func(ctx context.Context, tx *stdsql.Tx, e orderPlaced) error {
			defer j.write("handled " + e.ID)
			return insert(ctx, tx, orderPlaced{ID: "handled " + e.ID})
		}))
	app.RequireStart()
	tx, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, insert(t.Context(), tx, orderPlaced{ID: "1"}))
	require.NoError(t, b.InTx(tx).Publish(t.Context(), orderPlaced{ID: "1"}))
	require.NoError(t, tx.Commit())
	j.await(t, "handled 1")
	app.RequireStop()
	var n int
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT count(*) FROM orders").Scan(&n))
	require.Equal(t, 2, n)
}

func TestTx_outboxAndInboxByURL(t *testing.T) {
	db, path := openFile(t)
	t.Setenv("LEAT_OUTBOX_URL", "sqlite://"+path)
	t.Setenv("LEAT_INBOX_URL", "sqlite://"+path)
	trade(t, db, fxmodule.InboxFromURL())
}

func TestTx_outboxAndInboxOverAPool(t *testing.T) {
	db, _ := openFile(t)
	tables := sql.Config{Dialect: sql.SQLite}
	trade(t, db, fx.Supply(db),
		fxmodule.Outbox(func(db *stdsql.DB, c fxmodule.Config) (*outbox.Outbox, error) {
			return outbox.New(context.Background(), db, outbox.Config{Service: c.Service, Tables: tables})
		}),
		fxmodule.Inbox[*stdsql.Tx](func(db *stdsql.DB) (*inbox.Inbox[*stdsql.Tx], error) {
			return inbox.New(context.Background(), db, inbox.Config{Tables: tables})
		}))
}

func TestTx_mistakesFailTheStart(t *testing.T) {
	for name, value := range map[string]string{"LEAT_OUTBOX_URL": "no:secret url", "LEAT_INBOX_URL": "secret"} {
		t.Setenv(name, value)
		app := fx.New(quiet(), fxmodule.Module, fxmodule.InboxFromURL(),
			fxmodule.HandleTx("ledger", func(context.Context, *stdsql.Tx, orderPlaced) error { return nil }), fx.Invoke(func(*bus.Bus) {}))
		require.ErrorContains(t, app.Err(), name+": ")
		require.NotContains(t, app.Err().Error(), "secret")
		t.Setenv(name, "")
	}
	for want, option := range map[string]fx.Option{
		`handler "ledger": there is no inbox that makes a *sql.Tx; give one with fxmodule.Inbox`: fx.Options(),
		"LEAT_INBOX_URL is not set": fxmodule.InboxFromURL(),
	} {
		app := fx.New(quiet(), fxmodule.Module, option,
			fxmodule.HandleTx("ledger", func(context.Context, *stdsql.Tx, orderPlaced) error { return nil }))
		require.ErrorContains(t, app.Err(), want)
	}
	app := fx.New(quiet(), fxmodule.Module, fxmodule.Outbox(func() int { return 1 }))
	require.ErrorContains(t, app.Err(), "Outbox takes a constructor")
}
