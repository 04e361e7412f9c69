package queue

import (
	"context"
	"time"

	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A reconciler periodically moves messages that are in a wrong state, for one receiver.
//
//   - If the group's order has changed, a publisher whose transaction began before the change may still insert
//     messages for the old order. While a receiver runs, the order can't change, so such messages become less likely
//     with time. The reconciler doubles its interval up to reconcileSeldom, because in a group that is ordered by
//     key it may read all waiting messages.
//   - If consumers of a group differ in whether they park, parked messages may be left at any time.
type reconciler struct {
	groups groups
	group  group

	unpark, rearrange time.Time     // when each runs next
	wait              time.Duration // between the next rearrange and the one after it
}

const (
	// reconcileEvery is the shortest interval, and reconcileSeldom the longest.
	reconcileEvery  = 15 * time.Second
	reconcileSeldom = time.Hour
	// reconcileShare bounds the load: after a run, the reconciler pauses for that many times its duration.
	reconcileShare = 100
)

func newReconciler(all groups, g group) reconciler {
	first := time.Now().Add(reconcileEvery)
	return reconciler{groups: all, group: g, unpark: first, rearrange: first, wait: reconcileEvery}
}

// run does what is due. It returns an error of the database, and continues at the next call.
func (r *reconciler) run(ctx context.Context) error {
	now := time.Now()
	if now.Before(r.unpark) {
		return nil
	}
	r.unpark = now.Add(reconcileEvery) // after an error, too
	err := r.groups.Pool.InTx(ctx, func(tx database.Executor) error { return r.groups.holds.unpark(ctx, tx, r.group) })
	if err != nil {
		return err
	}
	if !now.Before(r.rearrange) {
		moved, err := r.groups.rearrange(ctx, r.groups.Pool, r.group, func(f func(database.Executor) error) error {
			return returning(ctx, r.groups.DB, r.group, f)
		})
		if err != nil {
			return err
		}
		r.wait = min(2*r.wait, reconcileSeldom)
		if moved > 0 { // there may be more such publishers
			r.wait = reconcileEvery
		}
		r.rearrange = now.Add(r.wait)
	}
	r.unpark = now.Add(max(reconcileEvery, reconcileShare*time.Since(now)))
	return nil
}
