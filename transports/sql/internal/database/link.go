package database

import (
	"sync"
	"sync/atomic"
)

// A Link records whether the database can be reached, by the latest statement that showed it.
type Link struct {
	lost atomic.Bool

	mu         sync.Mutex
	err        error
	reconnects int
}

// Status returns the error that shows that the database can't be reached, nil if it can, and how often it could be reached again.
func (l *Link) Status() (reconnects int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reconnects, l.err
}

// fails records that a connection was lost or could not be made.
func (l *Link) fails(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	l.lost.Store(true)
}

// Works records that a statement succeeded.
func (l *Link) Works() {
	if !l.lost.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost.CompareAndSwap(true, false) {
		l.err = nil
		l.reconnects++
	}
}
