package sql

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pgxPool implements pool with a *pgxpool.Pool.
type pgxPool struct {
	pool  *pgxpool.Pool
	owned bool
}

func (d *pgxPool) exec(ctx context.Context, query string, args ...any) (int64, error) {
	return pgxExecutor{d.pool}.exec(ctx, query, args...)
}

func (d *pgxPool) query(ctx context.Context, query string, args ...any) (rows, error) {
	return pgxExecutor{d.pool}.query(ctx, query, args...)
}

func (d *pgxPool) inTx(ctx context.Context, f func(executor) error) error {
	return pgx.BeginTxFunc(ctx, d.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		return f(pgxExecutor{tx})
	})
}

// pipeline runs the statements without BEGIN and COMMIT: PostgreSQL runs all statements before a Sync in one transaction.
func (d *pgxPool) pipeline(ctx context.Context, statements []statement) (affected []int64, err error) {
	var b pgx.Batch
	for _, s := range statements {
		b.Queue(s.query, s.args...)
	}
	results := d.pool.SendBatch(ctx, &b)
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

func (d *pgxPool) exhausted() bool {
	stat := d.pool.Stat()
	return stat.AcquiredConns() >= stat.MaxConns()
}

func (d *pgxPool) onExtraConn(ctx context.Context, _ error, f func(executor) error) error {
	conn, err := pgx.ConnectConfig(ctx, d.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recycleTimeout)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	return f(pgxExecutor{conn})
}

func (d *pgxPool) recycle() { d.pool.Reset() }

func (d *pgxPool) close() {
	if d.owned {
		d.pool.Close()
	}
}

// A pgxQueryer is a pool, a connection or a transaction of pgx.
type pgxQueryer interface {
	Exec(ctx context.Context, query string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, query string, args ...any) (pgx.Rows, error)
}

type pgxExecutor struct{ q pgxQueryer }

func (e pgxExecutor) exec(ctx context.Context, query string, args ...any) (int64, error) {
	tag, err := e.q.Exec(ctx, query, args...)
	return tag.RowsAffected(), err
}

func (e pgxExecutor) query(ctx context.Context, query string, args ...any) (rows, error) {
	r, err := e.q.Query(ctx, query, args...) //nolint:sqlclosecheck // the caller closes it
	if err != nil {
		return nil, err
	}
	return r, nil
}
