package queue

import "time"

// lateCommit is how long a row counts as new after rows behind it were first seen: ids are given out before they are
// committed.
const lateCommit = time.Second / 2

// A watermark is an id up to which rows are no longer new.
type watermark struct {
	older, recent int64 // recent becomes older when lateCommit has gone by since turned
	turned        time.Time
}

// reset makes all rows up to id old.
func (w *watermark) reset(now time.Time, id int64) { w.older, w.recent, w.turned = id, id, now }

// advance records that rows up to id were read.
func (w *watermark) advance(now time.Time, id int64) {
	if now.Sub(w.turned) > lateCommit {
		w.older, w.recent, w.turned = w.recent, id, now
	}
}
