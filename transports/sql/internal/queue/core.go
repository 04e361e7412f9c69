package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/intx"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

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

// join registers a consumer of the group.
func (c *core) join(ctx context.Context, s driver.Subscription) (*receiver, error) {
	if c.leases.isClosed() {
		return nil, driver.ErrClosed
	}
	ctx, cancel := c.while(ctx)
	defer cancel()
	callerInTx := intx.Is(ctx) && c.Name == sqlconfig.SQLite
	if callerInTx {
		ctx, cancel = context.WithTimeout(ctx, sqliteTxWait)
		defer cancel()
	}
	id := newConsumerID()
	g, err := c.groups.subscribe(ctx, s, id)
	if callerInTx && errors.Is(err, context.DeadlineExceeded) {
		err = errSQLiteTx
	}
	if err != nil {
		return nil, failure(fmt.Sprintf("subscribe group %q", s.Group), err)
	}
	return newReceiver(c, newConsumer(id, g, subscriberOf(s)), s), nil
}

// sqliteTxWait bounds how long a subscription waits for SQLite's writer while its caller has an open transaction. If
// that transaction is the writer, the subscription would wait forever.
const sqliteTxWait = time.Second

var errSQLiteTx = errors.New("SQLite has one writer, which is the open transaction; run the bus or publish once before it begins")

// begin starts the receiver, which is woken by messages of the topics.
func (c *core) begin(f *receiver, topics []string) error {
	return c.leases.add(f.consumer, f, func() {
		c.waker.add(f.consumer, topics)
		f.start()
	})
}
