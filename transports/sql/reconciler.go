package sql

import (
	"context"
	"time"
)

// A reconciler looks now and then for messages in the wrong place, for one feed.
//
//   - If the group's order has changed, a publisher whose transaction is older than the change has not seen it, and may
//     insert after it. While a feed lives no other order can come, so the longer it lives the less is to be
//     expected: the reconciler looks ever less often, because in a group that is ordered by key a look may read all
//     that waits.
//   - If consumers of a group don't agree whether to park, parked messages may stay behind at any time.
type reconciler struct {
	groups groups
	group  group

	unpark, rearrange time.Time     // when to do it next
	wait              time.Duration // until the rearranging after that
}

const (
	// reconcileEvery is the shortest time between two looks, and reconcileSeldom the longest.
	reconcileEvery  = 15 * time.Second
	reconcileSeldom = time.Hour
	// reconcileShare is how many times as long as a look has taken nothing is looked for.
	reconcileShare = 100
)

func newReconciler(all groups, g group) reconciler {
	first := time.Now().Add(reconcileEvery)
	return reconciler{groups: all, group: g, unpark: first, rearrange: first, wait: reconcileEvery}
}

func (r *reconciler) run(ctx context.Context) error {
	now := time.Now()
	if now.Before(r.unpark) {
		return nil
	}
	r.unpark = now.Add(reconcileEvery) // after an error, too
	err := r.groups.pool.inTx(ctx, func(tx executor) error { return r.groups.holds.unpark(ctx, tx, r.group) })
	if err != nil {
		return err
	}
	if !now.Before(r.rearrange) {
		moved, err := r.groups.rearrange(ctx, r.groups.pool, r.group, func(f func(executor) error) error {
			return r.groups.returning(ctx, r.group, f)
		})
		if err != nil {
			return err
		}
		r.wait = min(2*r.wait, reconcileSeldom)
		if moved > 0 { // their publisher may not be the last one
			r.wait = reconcileEvery
		}
		r.rearrange = now.Add(r.wait)
	}
	r.unpark = now.Add(max(reconcileEvery, reconcileShare*time.Since(now)))
	return nil
}
