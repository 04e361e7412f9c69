package sql

import (
	"context"
	"time"
)

// tidier looks now and then for messages in the wrong place, for one feed.
//
// Where the group's order has changed, a publisher whose transaction is older than the change has not seen
// it, and may insert after it. While a feed lives no other order can come, so that the longer it lives the
// less there is to be expected: it looks ever less often, because in a group that is ordered by key a look
// may read all that waits. What consumers park who do not agree whether to can be found at any time.
type tidier struct {
	unpark, rearrange time.Time     // when to do it next
	wait              time.Duration // until the rearranging after that
}

const (
	// tidyEvery is the shortest time between two looks, and tidySeldom the longest.
	tidyEvery  = 15 * time.Second
	tidySeldom = time.Hour
	// tidyShare is how many times as long as a look has taken nothing is looked for.
	tidyShare = 100
)

func newTidier() tidier {
	first := time.Now().Add(tidyEvery)
	return tidier{unpark: first, rearrange: first, wait: tidyEvery}
}

func (t *tidier) tidy(ctx context.Context, s *store, g group) error {
	now := time.Now()
	if now.Before(t.unpark) {
		return nil
	}
	t.unpark = now.Add(tidyEvery) // after an error, too
	if err := s.unpark(ctx, s.db, g); err != nil {
		return err
	}
	if !now.Before(t.rearrange) {
		moved, err := s.rearrange(ctx, s.db, g)
		if err != nil {
			return err
		}
		t.wait = min(2*t.wait, tidySeldom)
		if moved > 0 { // their publisher may not be the last one
			t.wait = tidyEvery
		}
		t.rearrange = now.Add(t.wait)
	}
	t.unpark = now.Add(max(tidyEvery, tidyShare*time.Since(now)))
	return nil
}
