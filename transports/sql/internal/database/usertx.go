package database

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// The user's transaction may be one on another database that also has leat's tables. Its rows would be
// stored there and never be delivered. So the insert has a condition that only the right tables meet.

var (
	errTxType   = errors.New("it is not a supported transaction; pass a *sql.Tx (or a type that embeds one), or a pgx.Tx on PostgreSQL")
	errTxOver   = errors.New("the transaction is over; publish before its commit")
	errConflict = errors.New("the transaction conflicts with another one that was committed meanwhile, which its isolation level does not allow; " +
		"run the whole transaction again, or begin it at READ COMMITTED")
)

var (
	// ErrRolledBack is returned if the server has rolled the user's transaction back, and the user goes on.
	ErrRolledBack = errors.New("the database has rolled the transaction back, for a deadlock whose error was not returned; " +
		"return the errors of all statements, and retry the transaction")
	// ErrElsewhere is returned if the user's transaction is not on the database of the tables.
	ErrElsewhere = errors.New("the transaction is not on the database that has these tables; begin it on the same database")
)

// InOpenTx returns a condition that is false if the server has rolled the user's transaction back, with AND in front. Without it, an
// insert would run, and commit, outside of the transaction. It is empty for servers that return an error in that case.
func (d *DB) InOpenTx() string {
	if !d.hasInTransaction {
		return ""
	}
	return ` AND @@in_transaction = 1`
}

// RolledBack returns an error if the server has rolled the transaction back, as MySQL does for a deadlock.
func (d *DB) RolledBack(ctx context.Context, ex Executor) error {
	if !d.hasInTransaction {
		return nil
	}
	open, _, err := Number(ctx, ex, `SELECT @@in_transaction`)
	if err == nil && open != 1 {
		err = ErrRolledBack
	}
	return d.TxError(err)
}

// A stdTx is a *sql.Tx, or a type that embeds it.
type stdTx interface {
	stdQueryer
	Commit() error
	Rollback() error
}

// A pgxTx is a pgx.Tx, with the methods that are used.
type pgxTx interface {
	pgxQueryer
	Commit(ctx context.Context) error
	Rollback(ctx context.Context) error
}

// UserTx returns an executor for the user's transaction. arrays reports whether its driver supports array arguments.
func (d *DB) UserTx(tx any) (ex Executor, arrays bool, err error) {
	if std, ok := tx.(*stdsql.Tx); ok && std == nil {
		return nil, false, fmt.Errorf("a nil %T: %w", tx, errTxType)
	}
	switch tx := tx.(type) {
	case stdTx:
		return stdExecutor{tx}, false, nil
	case pgxTx:
		if d.Name == sqlconfig.Postgres {
			return pgxExecutor{tx}, true, nil
		}
		return nil, false, ErrElsewhere
	default:
		return nil, false, fmt.Errorf("a %T: %w", tx, errTxType)
	}
}

// TxError replaces errors that show a wrong use of the transaction by an error that explains it.
func (d *DB) TxError(err error) error {
	switch {
	case errors.Is(err, stdsql.ErrTxDone), errors.Is(err, pgx.ErrTxClosed):
		return errTxOver
	case postgresCode(err) == "40001", mysqlNumber(err) == 1020:
		return fmt.Errorf("%w: %w", errConflict, err)
	case d.foreign(err):
		return fmt.Errorf("%w: %w", ErrElsewhere, err)
	default:
		return err
	}
}

// foreign reports whether an error is from a database that lacks leat's tables or has another dialect.
func (d *DB) foreign(err error) bool {
	_, lite := errors.AsType[sqliteError](err)
	switch {
	case postgresCode(err) != "":
		return d.Name != sqlconfig.Postgres || postgresCode(err) == "42P01"
	case mysqlNumber(err) != 0:
		return d.Name != sqlconfig.MySQL || mysqlNumber(err) == 1146
	case lite:
		return d.Name != sqlconfig.SQLite || strings.Contains(err.Error(), "no such table")
	default:
		return false
	}
}
