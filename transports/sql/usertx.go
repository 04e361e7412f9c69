package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A transaction of the user's may be another database's, and nothing else would say so: its rows would
// wait where nobody looks. So the insert itself asks for something that only the right tables have,
// and makes no row elsewhere.

var (
	errTxType     = errors.New("this is no transaction that can be used here; pass a *sql.Tx (or what embeds one), or a pgx.Tx on PostgreSQL")
	errTxOver     = errors.New("the transaction is over; publish before its commit")
	errRolledBack = errors.New("the database has rolled the transaction back, for a deadlock whose error was not returned; " +
		"return the errors of all statements, and begin again")
	errElsewhere = errors.New("the transaction is not one of the database that has these tables; begin it on the same database")
)

// inOpenTx returns to, which leads to no group if the server has rolled the transaction back. The insert would be
// a transaction of its own.
func (d *database) inOpenTx(to routeFilter) routeFilter {
	if !d.tellsTx {
		return to
	}
	return func(args []any) (string, []any) {
		where, args := to(args)
		return where + ` AND @@in_transaction = 1`, args
	}
}

// rolledBack returns an error if the server has rolled the transaction back, as MySQL does for a deadlock.
func (d *database) rolledBack(ctx context.Context, ex executor) error {
	if !d.tellsTx {
		return nil
	}
	open, _, err := number(ctx, ex, `SELECT @@in_transaction`)
	if err == nil && open != 1 {
		err = errRolledBack
	}
	return d.txError(err)
}

// stdTx is *sql.Tx, and what embeds it.
type stdTx interface {
	stdQueryer
	Commit() error
	Rollback() error
}

// pgxTx is pgx.Tx, as far as it is used.
type pgxTx interface {
	pgxQueryer
	Commit(ctx context.Context) error
	Rollback(ctx context.Context) error
}

// userTx runs statements in the user's transaction.
func (d *database) userTx(tx any) (ex executor, arrays bool, err error) {
	if std, ok := tx.(*stdsql.Tx); ok && std == nil {
		return nil, false, fmt.Errorf("a nil %T: %w", tx, errTxType)
	}
	switch tx := tx.(type) {
	case stdTx:
		return stdExecutor{tx}, false, nil
	case pgxTx:
		if d.name == Postgres {
			return pgxExecutor{tx}, true, nil
		}
		return nil, false, errElsewhere
	default:
		return nil, false, fmt.Errorf("a %T: %w", tx, errTxType)
	}
}

// txError makes clear what the mistake is in a transaction that can't be used.
func (d *database) txError(err error) error {
	switch {
	case errors.Is(err, stdsql.ErrTxDone), errors.Is(err, pgx.ErrTxClosed):
		return errTxOver
	case d.foreign(err):
		return fmt.Errorf("%w: %w", errElsewhere, err)
	default:
		return err
	}
}

// foreign recognizes the errors of a database that lacks leat's tables, or is of another kind.
func (d *database) foreign(err error) bool {
	_, lite := errors.AsType[sqliteError](err)
	switch {
	case postgresCode(err) != "":
		return d.name != Postgres || postgresCode(err) == "42P01"
	case mysqlNumber(err) != 0:
		return d.name != MySQL || mysqlNumber(err) == 1146
	case lite:
		return d.name != SQLite || strings.Contains(err.Error(), "no such table")
	default:
		return false
	}
}
