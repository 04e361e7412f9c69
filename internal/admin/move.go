package admin

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// moveAtOnce is how many messages one call moves: enough for a transport that reads its queue from the front
// each time, and few enough to show progress.
const moveAtOnce = 10_000

// Move is messages of one poison queue on their way out of it.
type Move struct {
	IDs []string
	// Act is the queue's Replay or Drop.
	Act func(ctx context.Context, ids ...string) (int, error)
	// Rate is how many messages a second; 0 means as many as it takes.
	Rate int
	// Progress is called now and then with how many are moved.
	Progress func(done int)
}

// Moved is what a move has done.
type Moved struct {
	Done int // messages that were moved
	Gone int // messages that were not there any more: somebody else has moved them
}

// Run moves the messages, and stops where ctx is done. It may be run again for what is left: every
// message is in one place or, after a crash, in both, and never in none.
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
