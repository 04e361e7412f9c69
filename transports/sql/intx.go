package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/leatbus/leat/bus/driver"
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

var _ driver.TxPublisher = (*Transport)(nil)

// PublishTx inserts the messages for every group that wants them, in the user's transaction. Consumers
// get them after its commit, within milliseconds in this process.
func (t *Transport) PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error {
	inserted, err := t.insertTx(ctx, tx, topic, msgs, func(b batch, arrays bool) (string, []any) {
		return t.store.insertSome(b, arrays, t.store.inOpenTx(t.store.wantedHere(topic)))
	})
	if err == nil && inserted == 0 {
		err = t.nobody(ctx, tx, topic, len(msgs))
	}
	if err != nil {
		return fmt.Errorf("sql: publish %s in transaction: %w", topic, err)
	}
	t.waker.published(topic)
	return nil
}

// nobody says why nothing was inserted.
func (t *Transport) nobody(ctx context.Context, tx any, topic string, n int) error {
	ex, _, err := t.store.userTx(tx)
	if err != nil {
		return err
	}
	_, here, err := number(ctx, ex, t.store.sql(`SELECT version FROM {migrations} WHERE version = 1 AND applied_at = ?`), t.store.born)
	if err != nil {
		return t.store.txError(err)
	}
	if !here {
		return errElsewhere
	}
	if err := t.store.rolledBack(ctx, ex); err != nil {
		return err
	}
	return &driver.UnroutableError{Topics: slices.Repeat([]string{topic}, n), Strict: t.store.cfg.Unroutable == UnroutableError}
}

// inOpenTx is to, and leads to no group if the server has rolled the transaction back. The insert would be
// a transaction of its own.
func (s *store) inOpenTx(to way) way {
	if !s.tellsTx {
		return to
	}
	return func(args []any) (string, []any) {
		where, args := to(args)
		return where + ` AND @@in_transaction = 1`, args
	}
}

// rolledBack returns an error if the server has rolled the transaction back, as MySQL does for a deadlock.
func (s *store) rolledBack(ctx context.Context, ex executor) error {
	if !s.tellsTx {
		return nil
	}
	open, _, err := number(ctx, ex, `SELECT @@in_transaction`)
	if err == nil && open != 1 {
		err = errRolledBack
	}
	return s.txError(err)
}

// insertTx inserts messages in the user's transaction, by the statements that insert makes. It returns how
// many rows were made.
func (t *Transport) insertTx(ctx context.Context, tx any, topic string, msgs []*message.Message,
	insert func(b batch, arrays bool) (query string, args []any),
) (inserted int64, err error) {
	if t.isClosed() {
		return 0, driver.ErrClosed
	}
	if err := t.store.file.gone(); err != nil {
		return 0, err
	}
	ex, arrays, err := t.store.userTx(tx)
	if err != nil {
		return 0, err
	}
	if err := driver.ValidateTopic(topic); err != nil {
		return 0, err
	}
	rows, err := publications(msgs)
	if err != nil {
		return 0, err
	}
	for _, c := range (batch{topic, rows}).chunks() {
		query, args := insert(c, arrays)
		n, err := ex.exec(ctx, query, args...)
		if err != nil {
			return 0, t.store.txError(err)
		}
		inserted += n
	}
	return inserted, nil
}

// insertSome is the insert of a batch, in a form that the transaction's driver takes.
func (s *store) insertSome(b batch, arrays bool, to way) (query string, args []any) {
	if arrays {
		return s.insertArrays(b.topic, b.rows, to)
	}
	return s.statements.insert(b.topic, b.rows, to)
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
func (s *store) userTx(tx any) (ex executor, arrays bool, err error) {
	if std, ok := tx.(*stdsql.Tx); ok && std == nil {
		return nil, false, fmt.Errorf("a nil %T: %w", tx, errTxType)
	}
	switch tx := tx.(type) {
	case stdTx:
		return stdExecutor{tx}, false, nil
	case pgxTx:
		if s.name == Postgres {
			return pgxExecutor{tx}, true, nil
		}
		return nil, false, errElsewhere
	default:
		return nil, false, fmt.Errorf("a %T: %w", tx, errTxType)
	}
}

// txError makes clear what the mistake is in a transaction that can't be used.
func (s *store) txError(err error) error {
	switch {
	case errors.Is(err, stdsql.ErrTxDone), errors.Is(err, pgx.ErrTxClosed):
		return errTxOver
	case s.foreign(err):
		return fmt.Errorf("%w: %w", errElsewhere, err)
	default:
		return err
	}
}

// foreign recognizes the errors of a database that lacks leat's tables, or is of another kind.
func (s *store) foreign(err error) bool {
	_, lite := errors.AsType[sqliteError](err)
	switch {
	case postgresCode(err) != "":
		return s.name != Postgres || postgresCode(err) == "42P01"
	case mysqlNumber(err) != 0:
		return s.name != MySQL || mysqlNumber(err) == 1146
	case lite:
		return s.name != SQLite || strings.Contains(err.Error(), "no such table")
	default:
		return false
	}
}
