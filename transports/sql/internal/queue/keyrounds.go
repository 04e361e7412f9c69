package queue

import (
	"context"
	"time"

	"github.com/leatbus/leat/transports/sql/internal/database"
)

// keyRounds decides how soon the walk over the key queues of a group goes on that finds nothing, and which rows
// are new to it. A group is crowded if more of its key queues wait than one claim looks at. Then claims follow
// one another until the walk has come round, which may take seconds; meanwhile each of them also looks at new
// rows. Between two rounds of a crowded group, claims look at new rows and where hints lead.
//
// A group is littered if the walk takes long because it goes over deleted rows, which stay in PostgreSQL's index as
// long as somebody's snapshot may see them. Then there is a walk now and then only, and claims look at new rows and
// where hints lead otherwise.
type keyRounds struct {
	walk    keyWalk // where the last walk ended
	opened  bool
	crowded bool
	litter  bool
	behind  bool          // the first round since the group became littered has not ended; only this round finds rows that were there before
	slow    int           // walks in a row
	owed    bool          // claims have left the walk out
	claims  int           // of the round so far
	spent   time.Duration // on them
	next    time.Time     // when the next round may begin
	seen    watermark
	more    bool          // there are new rows that were not read yet
	busy    bool          // the last claim took something
	orphans time.Time     // when what dead consumers had taken was last put back
	orphan  time.Duration // how long that took
	walked  time.Time     // when the last claim was that did not only follow hints
}

// walkEvery is how long claims may follow hints alone that lead to enough messages. Else keys of which this receiver
// has settled nothing would get no turn.
const walkEvery = 20 * time.Millisecond

// open remembers which rows are there already.
func (l *keyRounds) open(ctx context.Context, d *database.DB) (err error) {
	if l.opened {
		return nil
	}
	newest, err := newestID(ctx, d)
	if err != nil {
		return err
	}
	l.seen.reset(time.Now(), max(newest, 1))
	l.opened = true
	return nil
}

// fresh returns the id behind which rows are new, 0 if the walk finds everything soon, and whether the walk is
// to be short.
func (l *keyRounds) fresh(now time.Time) (id int64, brief bool) {
	if !l.crowded && !l.litter {
		return 0, false
	}
	return l.seen.older, now.Before(l.next)
}

// noWalk reports whether the next claim is to leave the walk out.
func (l *keyRounds) noWalk(now time.Time) bool {
	return l.litter && !l.behind && now.Before(l.next)
}

// walkDue returns when the walk is due that claims have left out, zero for none.
func (l *keyRounds) walkDue() time.Time {
	if !l.owed {
		return time.Time{}
	}
	return l.next
}

// littered notes whether a walk was slow for what it found. If that makes the group littered, a round begins that goes
// over everything that is there, without a pause: only rows that are inserted later count as new.
func (l *keyRounds) littered(slow bool) {
	l.slow++
	if !slow {
		l.slow = 0
	}
	was := l.litter
	l.litter = l.slow >= slowInARow || was && slow
	if l.litter && !was {
		l.opened, l.behind = false, true
		l.walk = keyWalk{after: l.walk.after, start: l.walk.after}
		l.claims, l.spent, l.next = 0, 0, time.Time{}
	}
}

func (l *keyRounds) claimed(began time.Time, found keysFound) {
	l.walk, l.more, l.busy = found.walk, found.more, len(found.taken) > 0
	l.owed = l.litter && !found.walked
	if found.walked {
		l.walked = began
	}
	switch {
	case found.newest == 0:
	case found.more: // there are too many to read any of them twice
		l.seen.reset(began, found.newest)
	default:
		l.seen.advance(began, found.newest)
	}
	if l.litter && !found.walked {
		return
	}
	l.spent += time.Since(began)
	switch {
	case found.round && l.claims == 0:
		l.crowded = false
	case found.round, l.litter && !found.crowded && !l.behind:
	default:
		l.claims++
		l.crowded = l.crowded || found.crowded
		return
	}
	share := 4
	if l.litter {
		share = 10
	}
	l.next = time.Now().Add(max(time.Second, time.Duration(share)*l.spent))
	l.behind, l.claims, l.spent = false, 0, 0
}

// goOn reports whether a claim that found less than it wanted is to be followed by another at once.
func (l *keyRounds) goOn(now time.Time) bool {
	return (l.crowded || l.litter) && l.more || l.crowded && !now.Before(l.next)
}
