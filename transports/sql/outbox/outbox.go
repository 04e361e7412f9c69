// Package outbox stores events in the transactions of services, in leat's tables on PostgreSQL, MySQL, MariaDB or SQLite, and relays them
// to the bus's transport after the commit. Package transports/sql describes how that works, the tables and the rights that they need.
//
// An outbox is a group of these tables, with the leases, claims and acks of every group. [Outbox] writes to the group, relay.go consumes
// it, and outcomes.go records which topics the transport accepts.
package outbox

import (
	"cmp"
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/queue"
)

// Config configures an [Outbox]. The zero value is ready to use on PostgreSQL.
type Config struct {
	// Tables configures the tables of the outbox: the same as a transport's, created and migrated
	// the same way. Several services may share them.
	Tables sql.Config
	// Service is the service's name; the outbox is named <service>.outbox. "" means [driver.DefaultService].
	Service string
	// Batch is the maximum number of messages that are published at once. 0 means 1000.
	Batch int
	// Patience is how long a batch waits for the transport. After that it is given back, and retried later by
	// this relay or another one. 0 means 10 s.
	Patience time.Duration
	// Retry configures the delays before a message that the transport refuses is retried; its other fields are
	// ignored. After the last delay, the message is moved to the outbox's poison queue. nil delays mean
	// 1 s, 5 s, 30 s, 5 min and 30 min. A refusal counts as an attempt only if the transport accepts other
	// messages of the topic, so neither an unreachable transport nor a full queue uses up attempts.
	Retry bus.RetryPolicy
}

const (
	defaultBatch    = 1000
	defaultPatience = 10 * time.Second
)

func (c Config) withDefaults() Config {
	c.Service = cmp.Or(c.Service, driver.DefaultService())
	c.Batch = cmp.Or(c.Batch, defaultBatch)
	c.Patience = cmp.Or(c.Patience, defaultPatience)
	if c.Retry.Delays == nil {
		c.Retry.Delays = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute}
	}
	return c
}

func (c Config) validate() error {
	if c.Batch < 1 || c.Patience < 0 {
		return fmt.Errorf("outbox: a number is out of range: batch %d, patience %s", c.Batch, c.Patience)
	}
	return c.Retry.Validate()
}

// An Outbox is a [driver.Outbox] in leat's tables. Its messages are in a group that only
// [bus.Bus.InTx] publishes to and only relays consume. Its methods may be called concurrently.
type Outbox struct {
	cfg       Config
	transport *queue.Transport
	group     *queue.PrivateGroup
	outcomes  *outcomes
}

var _ driver.Outbox = (*Outbox)(nil)

// New returns an outbox in the database of db, which the caller owns. Like [sql.New], it creates
// and migrates the tables, or checks them, and blocks until the database can be reached or ctx is done.
func New(ctx context.Context, db *stdsql.DB, cfg Config) (*Outbox, error) {
	t, err := sql.New(ctx, db, cfg.Tables)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t, cfg)
}

// NewPgx does the same as [New] with a pgx pool.
func NewPgx(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Outbox, error) {
	t, err := sql.NewPgx(ctx, pool, cfg.Tables)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t, cfg)
}

// Open returns an outbox with its own connections, for the URL of a transport. The URL's options replace
// cfg.Tables.
func Open(ctx context.Context, u *url.URL, cfg Config) (*Outbox, error) {
	t, err := sql.Open(ctx, u)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t.(*queue.Transport), cfg)
}

func newOutbox(ctx context.Context, t *queue.Transport, cfg Config) (*Outbox, error) {
	unnamed := cfg.Service == ""
	cfg = cfg.withDefaults()
	o := &Outbox{cfg: cfg, transport: t}
	err := cfg.validate()
	if err == nil {
		err = driver.Subscription{Group: o.Group(), Topics: []string{">"}, Concurrency: 1}.Validate()
	}
	if err == nil && unnamed {
		err = driver.CheckDefaultService(ctx, t, queue.OutboxHandler)
	}
	if err == nil {
		o.group, err = queue.NewPrivateGroup(ctx, t, o.Group())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sql: %w", err), t.Close(ctx))
	}
	o.outcomes = newOutcomes(o.group.Logger().With("outbox", o.Group()))
	return o, nil
}

// Group returns <service>.outbox.
func (o *Outbox) Group() string { return o.cfg.group() }

func (c Config) group() string { return c.Service + "." + queue.OutboxHandler }

// PublishTx inserts the messages into the outbox in the user's transaction. It returns an error, and no [driver.UnroutableError],
// if tx is not a transaction on the outbox's database. The relay publishes the messages after the commit.
func (o *Outbox) PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error {
	if err := o.group.PublishTx(ctx, tx, topic, msgs...); err != nil {
		return fmt.Errorf("sql: outbox: %w", err)
	}
	return nil
}

// PoisonQueue returns the poison queue of the outbox, with the messages that the transport has refused.
func (o *Outbox) PoisonQueue() driver.PoisonQueue { return o.transport.PoisonQueue(o.Group()) }

// Stats returns the number and the greatest age of the messages that are committed and not relayed yet, of all processes that share the
// outbox. It counts at most 50,000 messages with a key and 50,000 without one; OldestAge is that of the oldest message counted.
func (o *Outbox) Stats(ctx context.Context) (stats driver.OutboxStats, err error) {
	pending, oldest, err := o.group.Pending(ctx)
	if err != nil {
		return stats, fmt.Errorf("sql: outbox: %w", err)
	}
	return driver.OutboxStats{Pending: pending, OldestAge: oldest}, nil
}

// Problem returns the error that keeps the relay of this process from publishing messages of any topic, nil if there
// is none.
func (o *Outbox) Problem() error { return o.outcomes.problem() }

// Close stops the relay, gives back its unsettled messages, and closes the outbox's transport.
func (o *Outbox) Close(ctx context.Context) error { return o.transport.Close(ctx) }
