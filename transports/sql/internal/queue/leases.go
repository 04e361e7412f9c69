package queue

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A holder is a receiver that has a lease.
type holder interface {
	Close(ctx context.Context) error
	end(ctx context.Context) error // gives back unsettled messages, and ends the lease
}

// leases renews the leases of a transport's receivers. mu is held while a receiver starts, and never during a statement.
type leases struct {
	*lifetime
	consumers

	mu      sync.Mutex
	holders map[*consumer]holder
	closed  bool
	removed error // groups of this process that an operator has removed
}

func newLeases(life *lifetime, all consumers) *leases {
	return &leases{lifetime: life, consumers: all, holders: make(map[*consumer]holder)}
}

// add adds the lease of a receiver and calls begin, unless the transport is closed.
func (l *leases) add(c *consumer, h holder, begin func()) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return driver.ErrClosed
	}
	l.holders[c] = h
	begin()
	return nil
}

// close returns all receivers. After it, add returns [driver.ErrClosed].
func (l *leases) close() []holder {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	return slices.Collect(maps.Values(l.holders))
}

func (l *leases) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

func (l *leases) all() []*consumer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.holders))
}

// groups returns the groups with a lease, each once.
func (l *leases) groups() []group {
	byID := make(map[int64]group)
	for _, c := range l.all() {
		byID[c.group.id] = c.group
	}
	return slices.Collect(maps.Values(byID))
}

// end deletes a receiver's lease, once.
func (l *leases) end(ctx context.Context, c *consumer) error {
	l.mu.Lock()
	_, there := l.holders[c]
	delete(l.holders, c)
	l.mu.Unlock()
	if !there {
		return nil
	}
	return l.Retry(ctx, func(ctx context.Context) error { return l.leave(ctx, c.id) })
}

// keep renews the leases until the transport closes, and more often while the database can't be reached.
func (l *leases) keep() {
	interval := l.Config.Lease / 3
	wait := interval
	for backoff.Sleep(l.ctx, wait) {
		all := l.all()
		wait = interval
		if len(all) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(l.ctx, min(database.StatementTimeout, interval/2))
		err := l.renew(ctx, l.Relaxed, all)
		cancel()
		if err != nil && l.ctx.Err() == nil {
			err = l.renewOnExtraConn(all, err)
		}
		switch {
		case l.ctx.Err() != nil:
		case err == nil:
			l.Link.Works()
			l.misses(nil)
		case errors.Is(err, errRemoved):
			l.misses(err)
		default:
			l.Temporary(err)
			wait = min(interval, database.LongestBackoff)
		}
		if err != nil && l.ctx.Err() == nil {
			l.Config.Logger.Warn("leat: sql: leases not renewed", "error", err)
		}
	}
}

// misses records that groups of this process were removed; nil means none.
func (l *leases) misses(removed error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.removed = removed
}

// missing returns what misses has recorded.
func (l *leases) missing() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removed
}

// renewOnExtraConn renews leases on an additional connection if all connections of the pool are in use, perhaps by handlers of the messages
// whose leases would expire. It returns failed if that is not the reason.
func (l *leases) renewOnExtraConn(all []*consumer, failed error) error {
	crowded, ok := l.Pool.(database.Exhaustible)
	if !ok || l.Name == sqlconfig.SQLite || !crowded.Exhausted() { // SQLite's only connection is in use during every statement
		return failed
	}
	l.Config.Logger.Warn("leat: sql: pool exhausted", "error", failed,
		"hint", "give the pool a connection for each handler that holds one, and three more; in a transaction, publish by InTx")
	ctx, cancel := context.WithTimeout(l.ctx, database.StatementTimeout)
	defer cancel()
	return crowded.OnExtraConn(ctx, failed, func(ex database.Executor) error { return l.renew(ctx, ex, all) })
}
