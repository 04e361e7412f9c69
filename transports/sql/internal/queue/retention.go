package queue

import (
	"context"
	"time"

	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

const (
	// cleanEvery is how often a transport deletes expired rows. The interval is shorter if messages are
	// kept for a shorter time.
	cleanEvery = 30 * time.Second
	// cleanAtOnce is how many rows one statement deletes.
	cleanAtOnce = 1000
)

// retention deletes expired leases, and handled and poisoned messages whose time to be kept is over. It deletes only messages
// of groups that this process consumes: other services may share the tables, and keep their messages longer.
type retention struct{ *core }

func (r retention) run() {
	for backoff.Sleep(r.ctx, r.interval()) {
		ctx, cancel := context.WithTimeout(r.ctx, cleanEvery)
		err := r.clean(ctx, r.leases.groups())
		cancel()
		if err != nil && r.ctx.Err() == nil {
			r.Temporary(err)
			r.Config.Logger.Warn("leat: sql: cleanup failed", "error", err)
		}
	}
}

// interval returns the time between two deletions.
func (r retention) interval() time.Duration {
	every := cleanEvery
	for _, keep := range []time.Duration{r.Config.KeepHandled, r.Config.KeepPoisoned} {
		if keep > 0 {
			every = min(every, max(keep, time.Second))
		}
	}
	return every
}

func (r retention) clean(ctx context.Context, groups []group) error {
	if err := r.FileGone(); err != nil {
		return err
	}
	if err := r.leases.deleteExpired(ctx); err != nil {
		return err
	}
	if err := r.groups.cleanTails(ctx); err != nil {
		return err
	}
	err := r.cleanState(ctx, groups, database.StateHandled, r.Config.KeepHandled, func(ids []int64, _ group) error {
		query, args := r.WithIDs(`DELETE FROM {messages} WHERE state = {handled} AND id {in}`, ids)
		_, err := r.Relaxed.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		return err
	}
	return r.cleanState(ctx, groups, database.StatePoisoned, r.Config.KeepPoisoned, func(ids []int64, g group) error {
		return r.groups.locked(ctx, r.Relaxed, g, func(tx lockedGroup) error {
			_, _, err := r.poison.drop(ctx, tx, ids)
			return err
		})
	})
}

// cleanState calls remove, in batches, with the messages of the groups that have been in a state for longer than
// keep. 0 means to keep them.
func (r retention) cleanState(ctx context.Context, groups []group, in database.State, keep time.Duration, remove func([]int64, group) error) error {
	if keep == 0 {
		return nil
	}
	for _, g := range groups {
		for n := cleanAtOnce; n == cleanAtOnce; {
			ids, err := database.Numbers(ctx, r.Pool, r.SQL(`SELECT id FROM {messages} WHERE group_id = ? AND state = ? AND pos < {now} - ? ORDER BY pos LIMIT ?`),
				g.id, int(in), keep.Microseconds(), cleanAtOnce)
			if err != nil {
				return err
			}
			if n = len(ids); n == 0 {
				break
			}
			if err := remove(ids, g); err != nil {
				return err
			}
		}
	}
	return nil
}
