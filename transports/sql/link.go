package sql

import (
	"sync"
	"sync/atomic"
)

// link is whether the database can be reached, by the last statement that could tell.
type link struct {
	lost atomic.Bool

	mu         sync.Mutex
	err        error
	reconnects int
}

// fails notes that a connection was lost or could not be made.
func (l *link) fails(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	l.lost.Store(true)
}

// works notes that the database has answered.
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
