package sql

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
)

// A consumer is a feed's row: as long as it is renewed, the messages that bear its id are its own.
// So a lease costs one row for each feed and three updates in its time, however many messages there
// are.

// newConsumerID is random, so that an id never comes again: not after a restore, and not while a
// statement that bears it may still be on its way.
func newConsumerID() int64 { return rand.Int64N(1<<62) + 1 } // a name, not a secret

// thisProcess shows operators whose lease it is.
func thisProcess() string {
	host, _ := os.Hostname()
	return host + "/" + strconv.Itoa(os.Getpid())
}

func (s *store) register(ctx context.Context, ex executor, g group, owner int64, where string) error {
	_, err := ex.exec(ctx, s.sql(`INSERT INTO {consumers} (id, group_id, ordering, expires_at, place) VALUES (?, ?, ?, {now} + ?, ?)`),
		owner, g.id, int(g.order), s.cfg.Lease.Microseconds(), where)
	return err
}

// renew renews leases. What somebody took for dead and cleared away meanwhile is entered again: its
// messages are others' by now, but new ones must be its own.
func (s *store) renew(ctx context.Context, ex executor, feeds []*feed, where string) error {
	ids := make([]int64, len(feeds))
	for i, f := range feeds {
		ids[i] = f.owner
	}
	query, args := s.withIDs(`UPDATE {consumers} SET expires_at = {now} + ? WHERE id {in}`, ids, s.cfg.Lease.Microseconds())
	n, err := ex.exec(ctx, query, args...)
	if err != nil || int(n) == len(feeds) {
		return err
	}
	query, args = s.withIDs(`SELECT id FROM {consumers} WHERE id {in}`, ids)
	there, err := numbers(ctx, ex, query, args...)
	if err != nil {
		return err
	}
	alive := make(map[int64]bool, len(there))
	for _, id := range there {
		alive[id] = true
	}
	for _, f := range feeds {
		if !alive[f.owner] {
			if err := s.register(ctx, ex, f.group, f.owner, where); err != nil {
				return err
			}
		}
	}
	return nil
}

// leave ends a lease.
func (s *store) leave(ctx context.Context, owner int64) error {
	_, err := s.db.exec(ctx, s.sql(`DELETE FROM {consumers} WHERE id = ?`), owner)
	return err
}
