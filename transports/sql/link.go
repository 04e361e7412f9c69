package sql

import (
	"sync"
	"sync/atomic"
)

// A link records whether the database can be reached, by the latest statement that showed it.
type link struct {
	lost atomic.Bool

	mu         sync.Mutex
	err        error
	removed    error // groups of this process that an operator has removed
	reconnects int
}

// misses records that groups of this process were removed; nil means none.
func (l *link) misses(removed error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = removed
}

// fails records that a connection was lost or could not be made.
func (l *link) fails(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	l.lost.Store(true)
}

// works records that a statement succeeded.
func (l *link) works() {
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
