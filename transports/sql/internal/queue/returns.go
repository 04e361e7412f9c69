package queue

import (
	"context"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// markReturns records that messages return to the group's key queues from other states than being claimed; [keyLows] documents why. It
// must be called in the same transaction, and locks the group until that ends.
func markReturns(ctx context.Context, d *database.DB, tx database.Executor, g group) error {
	if d.Name != sqlconfig.Postgres || g.order == driver.Unordered {
		return nil
	}
	_, err := tx.Exec(ctx, d.SQL(`UPDATE {turns} SET created_at = created_at + 1 WHERE group_id = ?`), g.id)
	return err
}

// returning runs f, which returns messages to the group's key queues, and calls markReturns in the same transaction if that is needed.
func returning(ctx context.Context, d *database.DB, g group, f func(database.Executor) error) error {
	if d.Name != sqlconfig.Postgres || g.order == driver.Unordered {
		return f(d.Pool)
	}
	return d.Pool.InTx(ctx, func(tx database.Executor) error {
		if err := markReturns(ctx, d, tx, g); err != nil {
			return err
		}
		return f(tx)
	})
}
