package sql

import "github.com/leatbus/leat/transports/sql/internal/database"

// core has what a transport and its receivers share: the database, the types that change its tables, and the goroutines that
// serve all receivers.
//
// Each part uses only the parts above it. A mutex in this package guards the fields below it, is not held during a statement, and
// no other mutex is locked while it is held. There are two exceptions: the mutex of [leases], which is held while a receiver
// starts, and claimLock of [settlements].
type core struct {
	*lifetime
	*database.DB
	holds     holds
	groups    groups
	claims    claims
	keyQueues keyQueues
	poison    poison
	publisher publisher
	leases    *leases
	waker     *waker
}

func newCore(d *database.DB) *core {
	life := newLifetime()
	c := &core{lifetime: life, DB: d, holds: holds{d}, claims: claims{d}, publisher: publisher{d}}
	all := consumers{d, thisProcess()}
	c.groups = groups{d, c.holds, all}
	c.keyQueues = keyQueues{d, c.claims, c.groups, c.holds, keyRuns{d}}
	c.poison = poison{d, c.groups, c.holds}
	c.leases = newLeases(life, all)
	c.waker = newWaker(life, all)
	return c
}
