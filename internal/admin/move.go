package admin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// A Move replays or drops messages of one poison queue.
type Move struct {
	IDs []string
	// Act is the queue's Replay or Drop.
	Act func(ctx context.Context, ids ...string) (int, error)
	// Rate is the maximum number of messages per second; 0 means no limit.
	Rate int
	// Progress is called repeatedly with the number of moved messages.
	Progress func(done int)
}

// Moved is the result of a [Move].
type Moved struct {
	Done int // messages that were moved
	Gone int // messages that somebody else has moved
}

// Run moves the messages until ctx is done. It may be run again for the rest: every message is in
// one queue or, after a crash, in both.
func (m Move) Run(ctx context.Context) (moved Moved, err error) {
	began, size := time.Now(), max(len(m.IDs), 1) // one call, because a transport may read its queue from the front each time
	if m.Rate > 0 {
		size = max(m.Rate/5, 1)
	}
	taken, shown := 0, 0
	show := func(n int) {
		shown += n
		if m.Progress != nil {
			m.Progress(shown)
		}
	}
	for ids := range slices.Chunk(m.IDs, size) {
		if m.Rate > 0 {
			due := began.Add(time.Duration(taken) * time.Second / time.Duration(m.Rate))
			if err := wait(ctx, time.Until(due)); err != nil {
				return moved, err
			}
		}
		if ctx.Err() != nil {
			return moved, context.Cause(ctx)
		}
		n, err := m.Act(driver.WithProgress(ctx, show), ids...)
		taken += len(ids)
		moved.Done += n
		if err != nil && !errors.Is(err, driver.ErrNotFound) {
			return moved, err
		}
		moved.Gone += len(ids) - n
		show(moved.Done - shown) // what the transport has not shown
	}
	return moved, nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
