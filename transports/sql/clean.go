package sql

import (
	"context"
	"maps"
	"slices"
	"time"
)

const (
	// cleanEvery is how often a transport clears away what is too old, and more often where
	// messages are kept for less.
	cleanEvery = 30 * time.Second
	// cleanAtOnce is how many messages one statement deletes.
	cleanAtOnce = 1000
	// buryAfter is how long the lease of a dead consumer stays to be seen.
	buryAfter = 10 * time.Minute
)

// cleanUp deletes handled and poisoned messages whose time is over, and leases of the dead. It touches
// messages only of groups that this process consumes: the tables may be shared, and another service may keep
// its own for longer.
func (t *Transport) cleanUp() {
	for sleep(t.ctx, t.store.cfg.cleanEvery()) {
		ctx, cancel := context.WithTimeout(t.ctx, cleanEvery)
		err := t.store.clean(ctx, t.consumed())
		cancel()
		if err != nil && t.ctx.Err() == nil {
			t.store.temporary(err)
			t.store.cfg.Logger.Warn("leat: sql: clean up", "err", err)
		}
	}
}

// consumed returns the groups of the transport's feeds, each once.
func (t *Transport) consumed() []group {
	t.mu.Lock()
	defer t.mu.Unlock()
	byID := make(map[int64]group, len(t.feeds))
	for f := range t.feeds {
		byID[f.group.id] = f.group
	}
	return slices.Collect(maps.Values(byID))
}

func (c Config) cleanEvery() time.Duration {
	every := cleanEvery
	for _, keep := range []time.Duration{c.KeepHandled, c.KeepPoisoned} {
		if keep > 0 {
			every = min(every, max(keep, time.Second))
		}
	}
	return every
}

func (s *store) clean(ctx context.Context, groups []group) error {
	if err := s.file.gone(); err != nil {
		return err
	}
	_, err := s.quick.exec(ctx, s.sql(`DELETE FROM {consumers} WHERE expires_at < {now} - ?`), buryAfter.Microseconds())
	if err != nil {
		return err
	}
	if err := s.cleanTails(ctx); err != nil {
		return err
	}
	err = s.cleanState(ctx, groups, stateHandled, s.cfg.KeepHandled, func(ids []int64, _ group) error {
		query, args := s.withIDs(`DELETE FROM {messages} WHERE state = 3 AND id {in}`, ids)
		_, err := s.quick.exec(ctx, query, args...)
		return err
	})
	if err != nil {
		return err
	}
	return s.cleanState(ctx, groups, statePoisoned, s.cfg.KeepPoisoned, func(ids []int64, g group) error {
		return s.quick.inTx(ctx, func(tx executor) error {
			if err := s.lockTurn(ctx, tx, g); err != nil {
				return err
			}
			_, _, err := s.drop(ctx, tx, g, ids)
			return err
		})
	})
}

// cleanState calls remove with messages of the groups in that state for longer than they are kept, some at
// a time.
func (s *store) cleanState(ctx context.Context, groups []group, state int, keep time.Duration, remove func([]int64, group) error) error {
	if keep == 0 {
		return nil
	}
	for _, g := range groups {
		for n := cleanAtOnce; n == cleanAtOnce; {
			ids, err := numbers(ctx, s.db, s.sql(`SELECT id FROM {messages} WHERE group_id = ? AND state = ? AND pos < {now} - ? ORDER BY pos LIMIT ?`),
				g.id, state, keep.Microseconds(), cleanAtOnce)
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
