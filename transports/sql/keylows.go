package sql

import (
	"context"
	"slices"
	"strings"
	"time"
)

// keyLows says where a look-up in a key queue may begin. On PostgreSQL, deleted rows stay in the index as long as
// somebody's snapshot may see them, and each look-up from the start of a key queue walks over those of its key.
// Lower bounds are used only while look-ups are slow. It belongs to the goroutine of one feed.
//
// No message may be overlooked for them: one that is overlooked while it is out, or before a later one of its key,
// breaks the order. An id is a lower bound of a key queue as long as no message with a smaller one can come to be
// keyed or keyhead there:
//
//   - When it was found, under the group's lock, nothing in front of it was, and everything in front of it was
//     settled: no transaction that may have inserted such a message was open any more.
//   - Since then no message has come back to a key queue of the group but from a consumer's hands, that is, from
//     poisoned, parked, delayed or another order. Whoever makes one do so changes created_at in the group's row in
//     {turns}, in the same transaction and under the same lock.
type keyLows struct {
	*database
	until    time.Time // bounds are found and used until then; zero if look-ups are quick
	settled  int64     // every message up to this id is committed, or never will be
	next     int64     // becomes settled as soon as
	open     []string  // these transactions have ended
	asked    time.Time
	returns  int64 // created_at of the group's row in {turns}
	low      map[int64]int64
	baseline time.Duration // the least that a statement has taken which reads one row
	inARow   int           // slow claims
}

const (
	// slowLookUp is how much longer than a statement that reads one row a look-up takes that walks over deleted rows,
	// and quickHead what it may take for each message that it finds.
	slowLookUp = 2 * time.Millisecond
	quickHead  = 50 * time.Microsecond
	// slowInARow is how many look-ups must be slow. One or two may have waited for the machine.
	slowInARow = 3
	// boundsLast is how long bounds are used until look-ups begin at the start again. What somebody has done to the
	// tables by hand is seen then.
	boundsLast = 10 * time.Second
	// settleEvery is the shortest time between two looks at the open transactions.
	settleEvery = 100 * time.Millisecond
	// maxKeyLows bounds the memory that bounds take.
	maxKeyLows = 4096
)

// begin prepares for a claim.
func (l *keyLows) begin(ctx context.Context) error {
	now := time.Now()
	if !l.slow() {
		return nil
	}
	if now.After(l.until) {
		l.forget()
		return nil
	}
	if now.Sub(l.asked) < settleEvery {
		return nil
	}
	l.asked = now
	return l.settle(ctx)
}

// settle finds out up to which id everything is settled. A transaction locks the table before it gets an id for a row.
func (l *keyLows) settle(ctx context.Context) error {
	newest, err := l.newest(ctx)
	if err != nil {
		return err
	}
	open, err := collect(ctx, l.pool, func(r rows, tx *string) error { return r.Scan(tx) }, l.sql(`
		SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
		AND relation = ?::text::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`), l.table("messages"))
	if err != nil {
		return err
	}
	ended := !slices.ContainsFunc(l.open, func(tx string) bool { return slices.Contains(open, tx) })
	prepared := slices.ContainsFunc(open, func(tx string) bool { return strings.HasPrefix(tx, "-1/") }) // it had another name before
	if l.next != 0 && ended && !prepared {
		l.settled = l.next
		l.next = 0
	}
	if l.next == 0 {
		l.next, l.open = newest, open
	}
	return nil
}

// slow reports whether look-ups were slow a while ago.
func (l *keyLows) slow() bool { return !l.until.IsZero() }

// walksOver reports whether a look-up has walked over deleted rows, by how long it has taken.
func (l *keyLows) walksOver(took time.Duration) bool {
	return l.name == Postgres && took > slowLookUp+2*l.baseline
}

// took notes how long the look-ups of a claim have taken.
func (l *keyLows) took(d time.Duration) {
	if !l.bounded || !l.walksOver(d) {
		l.inARow = 0
		return
	}
	if l.inARow++; l.inARow >= slowInARow {
		l.until = time.Now().Add(max(boundsLast, 100*d))
	}
}

// locked notes what the group's row says, now that it is locked, and what that took. It reports whether messages came
// back to key queues.
func (l *keyLows) locked(returns int64, took time.Duration) (changed bool) {
	if l.baseline == 0 || took < l.baseline {
		l.baseline = took
	}
	changed = returns != l.returns
	if changed {
		clear(l.low)
	}
	l.returns = returns
	return changed
}

// found notes that a message is the first of its key queue, and that none of the queue is out.
func (l *keyLows) found(queue, id int64) {
	if !l.slow() || l.settled == 0 {
		return
	}
	if l.low == nil || len(l.low) >= maxKeyLows {
		l.low = make(map[int64]int64)
	}
	l.low[queue] = min(id, l.settled+1)
}

// of returns where look-ups in the key queues may begin.
func (l *keyLows) of(queues []int64) []int64 {
	lows := make([]int64, len(queues))
	for i, queue := range queues {
		lows[i] = l.low[queue]
	}
	return lows
}

// forget makes look-ups begin at the start: also after an error, as another server may have taken over.
func (l *keyLows) forget() {
	*l = keyLows{database: l.database, returns: l.returns, baseline: l.baseline}
}
