package database

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A PgxPool implements [Pool] with a *pgxpool.Pool.
type PgxPool struct {
	Pool  *pgxpool.Pool
	owned bool
}

// Exec implements [Pool].
func (d *PgxPool) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return pgxExecutor{d.Pool}.Exec(ctx, query, args...)
}

// Query implements [Pool].
func (d *PgxPool) Query(ctx context.Context, query string, args ...any) (Rows, error) {
	return pgxExecutor{d.Pool}.Query(ctx, query, args...)
}

// InTx implements [Pool].
func (d *PgxPool) InTx(ctx context.Context, f func(Executor) error) error {
	return pgx.BeginTxFunc(ctx, d.Pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		return f(pgxExecutor{tx})
	})
}

// Pipeline runs the statements without BEGIN and COMMIT: PostgreSQL runs all statements before a Sync in one transaction.
func (d *PgxPool) Pipeline(ctx context.Context, statements []Statement) (affected []int64, err error) {
	var b pgx.Batch
	for _, s := range statements {
		b.Queue(s.Query, s.Args...)
	}
	results := d.Pool.SendBatch(ctx, &b)
	for range statements {
		tag, err := results.Exec()
		if err != nil {
			_ = results.Close() // returns the same error
			return nil, err
		}
		affected = append(affected, tag.RowsAffected())
	}
	return affected, results.Close() // the commit's error
}

// Exhausted implements [Exhaustible].
func (d *PgxPool) Exhausted() bool {
	stat := d.Pool.Stat()
	return stat.AcquiredConns() >= stat.MaxConns()
}

// OnExtraConn implements [Exhaustible].
func (d *PgxPool) OnExtraConn(ctx context.Context, _ error, f func(Executor) error) error {
	return d.OnConn(ctx, func(conn *pgx.Conn) error { return f(pgxExecutor{conn}) })
}

// OnConn calls f with an additional connection.
func (d *PgxPool) OnConn(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.ConnectConfig(ctx, d.Pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recycleTimeout)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	return f(conn)
}

func (d *PgxPool) recycle() { d.Pool.Reset() }

// Close implements [Pool].
func (d *PgxPool) Close() {
	if d.owned {
		d.Pool.Close()
	}
}

// A pgxQueryer is a pool, a connection or a transaction of pgx.
type pgxQueryer interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
}

type pgxExecutor struct{ q pgxQueryer }

func (e pgxExecutor) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	tag, err := e.q.Exec(ctx, query, args...)
	return tag.RowsAffected(), err
}

func (e pgxExecutor) Query(ctx context.Context, query string, args ...any) (Rows, error) {
	r, err := e.q.Query(ctx, query, args...) //nolint:sqlclosecheck // the caller closes it
	if err != nil {
		return nil, err
	}
	return r, nil
}
