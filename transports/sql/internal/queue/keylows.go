package queue

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// keyLows has lower bounds of ids at which look-ups in key queues begin. On PostgreSQL, deleted rows stay in the index as long as a
// snapshot may see them, and a look-up from the start of a key queue reads all those of its key. The bounds are used only while
// look-ups are slow. A keyLows belongs to the goroutine of one receiver.
//
// A bound must not hide a message: if one is missed that is claimed, or that is before another one of its key, the order breaks. An
// id is a lower bound of a key queue as long as no message with a smaller id can get the state keyed or keyhead there:
//
//   - When the bound was found, under the group's lock, no message in front of it had such a state, and no transaction that may have
//     inserted such a message was still open.
//   - Since then no message has returned to a key queue of the group from the states poisoned, parked or delayed, or from another
//     order. A transaction that returns one also changes created_at in the group's row in {turns}, under the same lock.
type keyLows struct {
	*database.DB
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
	// slowInARow is how many look-ups in a row must be slow. One or two may be slow because the machine is busy.
	slowInARow = 3
	// boundsLast is how long bounds are used. After that, look-ups begin at the start again, and find messages that were changed by
	// hand.
	boundsLast = 10 * time.Second
	// settleEvery is the shortest time between two queries for open transactions.
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

// settle finds the id up to which no open transaction can insert rows. A transaction locks the table before it gets an id.
func (l *keyLows) settle(ctx context.Context) error {
	newest, err := newestID(ctx, l.DB)
	if err != nil {
		return err
	}
	open, err := database.Collect(ctx, l.Pool, func(r database.Rows, tx *string) error { return r.Scan(tx) }, l.SQL(`
		SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
		AND relation = ?::text::regclass AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`), l.Table("messages"))
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

// slow reports whether look-ups were slow recently.
func (l *keyLows) slow() bool { return !l.until.IsZero() }

// walksOver reports whether a look-up has probably read deleted rows, because it was slow.
func (l *keyLows) walksOver(took time.Duration) bool {
	return l.Name == sqlconfig.Postgres && took > slowLookUp+2*l.baseline
}

// took records how long the look-ups of a claim took.
func (l *keyLows) took(d time.Duration) {
	if !l.Bounded || !l.walksOver(d) {
		l.inARow = 0
		return
	}
	if l.inARow++; l.inARow >= slowInARow {
		l.until = time.Now().Add(max(boundsLast, 100*d))
	}
}

// locked records the value of the group's row after it was locked, and how long that took. It reports whether messages were returned
// to key queues.
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

// found records that a message is the first of its key queue, and that none of the queue is claimed.
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

// forget drops all bounds. It is also called after an error, because another server may have taken over.
func (l *keyLows) forget() {
	*l = keyLows{DB: l.DB, returns: l.returns, baseline: l.baseline}
}
