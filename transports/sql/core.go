package sql

// core is what a transport and its feeds have in common: the database, what is done to its tables, and the
// goroutines that serve all feeds.
//
// Each of its parts knows the ones before it and none behind it. A mutex of this package guards the fields below it, is
// held for no statement, and is the last that its goroutine takes. Two are different: that of [leases], which is held
// while a feed begins, and turn of [settlements].
type core struct {
	*lifetime
	*database
	holds     holds
	groups    groups
	claims    claims
	keyQueues keyQueues
	poison    poison
	publisher publisher
	leases    *leases
	waker     *waker
}

func newCore(d *database) *core {
	life := newLifetime()
	c := &core{lifetime: life, database: d, holds: holds{d}, claims: claims{d}, publisher: publisher{d}}
	all := consumers{d, thisProcess()}
	c.groups = groups{d, c.holds, all}
	c.keyQueues = keyQueues{d, c.claims, c.groups, c.holds, keyRuns{d}}
	c.poison = poison{d, c.groups, c.holds}
	c.leases = newLeases(life, all)
	c.waker = newWaker(life, all)
	return c
}
