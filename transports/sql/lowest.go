package sql

import "time"

// cheapWhole is what a claim from the start may take for it to be no matter.
const cheapWhole = 5 * time.Millisecond

// lowest says where a claim may begin. Deleted messages stay in the index until nobody can see them
// any more, which a transaction that somebody leaves open delays; a claim need not walk over those
// that were taken a while ago. What is committed late, comes back or was another's is below: now and
// then, and whenever there seems to be nothing and it takes no long, a claim begins at the start.
type lowest struct {
	whole         time.Time // when the last claim from the start was
	took          time.Duration
	turned        time.Time
	older, recent int64
	all           bool
}

func (l *lowest) from(now time.Time) int64 {
	if l.all && l.took < cheapWhole || now.Sub(l.whole) > max(time.Second, 20*l.took) {
		return 0
	}
	return l.older
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
	if now.Sub(l.turned) > time.Second/2 {
		l.older, l.recent, l.turned = l.recent, ready[len(ready)-1].id, now
	}
}
