package admin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// moveAtOnce is how many messages one call moves: many, because a transport may read its queue from the front
// each time, but few enough to show progress.
const moveAtOnce = 10_000

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
	began, size := time.Now(), moveAtOnce
	if m.Rate > 0 {
		size = min(max(m.Rate/5, 1), moveAtOnce)
	}
	taken := 0
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
		n, err := m.Act(ctx, ids...)
		taken += len(ids)
		moved.Done += n
		if err != nil && !errors.Is(err, driver.ErrNotFound) {
			return moved, err
		}
		moved.Gone += len(ids) - n
		if m.Progress != nil {
			m.Progress(moved.Done)
		}
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
