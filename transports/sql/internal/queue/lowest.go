package queue

import "time"

// cheapWhole is what a claim from the start may take for it to be no matter.
const cheapWhole = 5 * time.Millisecond

// lowest says where a claim may begin. Deleted messages stay in the index until nobody can see them
// any more, which a transaction that somebody leaves open delays; a claim need not walk over those
// that were taken a while ago. What is committed late, comes back or was another's is below: now and
// then, and whenever there seems to be nothing and it takes no long, a claim begins at the start.
type lowest struct {
	whole time.Time // when the last claim from the start was
	took  time.Duration
	seen  watermark
	all   bool
}

func (l *lowest) from(now time.Time) int64 {
	if l.all && l.took < cheapWhole || now.Sub(l.whole) > max(time.Second, 20*l.took) {
		return 0
	}
	return l.seen.older
}

// begin makes the next claim begin at the start: something came back.
func (l *lowest) begin() { l.whole = time.Time{} }

func (l *lowest) taken(began time.Time, from int64, ready []record, short bool) {
	now := time.Now()
	if from == 0 {
		l.whole, l.took = now, now.Sub(began)
	}
	l.all = short
	if len(ready) == 0 {
		return
	}
	l.seen.advance(now, ready[len(ready)-1].id)
}
