package sql

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
)

// OutboxConfig is how an outbox works. Its zero value does, on PostgreSQL.
type OutboxConfig struct {
	// Tables are the tables that the outbox uses: the same as the transport's, made and migrated
	// the same way. Several services may share them.
	Tables Config
	// Service names the outbox, <service>.outbox. "" means [bus.DefaultService].
	Service string
	// Batch is how many messages are published at once. 0 means 1000.
	Batch int
	// Patience is how long a batch waits for the transport before it is given back for a later try,
	// or to another relay. 0 means 10 s.
	Patience time.Duration
	// Retry is when a message is tried again that the transport refuses; only the delays are used.
	// Then it goes to the outbox's poison queue. nil delays mean 1 s, 5 s, 30 s, 5 min and 30 min. A
	// refusal counts only if the transport takes other messages of the topic: one that is away, or whose
	// queue is full, costs no try.
	Retry bus.RetryPolicy
}

const (
	outboxHandler   = "outbox"
	defaultBatch    = 1000
	defaultPatience = 10 * time.Second
)

func (c OutboxConfig) withDefaults() OutboxConfig {
	c.Service = cmp.Or(c.Service, bus.DefaultService())
	c.Batch = cmp.Or(c.Batch, defaultBatch)
	c.Patience = cmp.Or(c.Patience, defaultPatience)
	if c.Retry.Delays == nil {
		c.Retry.Delays = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute}
	}
	return c
}

func (c OutboxConfig) validate() error {
	if c.Batch < 1 || c.Patience < 0 {
		return fmt.Errorf("outbox: a number is out of range: batch %d, patience %s", c.Batch, c.Patience)
	}
	return c.Retry.Validate()
}

// Outbox is a [driver.Outbox] in the tables of this package. It is a group like any other, to which only
// [bus.Bus.InTx] publishes, and which only relays consume. Its methods may be called concurrently.
type Outbox struct {
	cfg       OutboxConfig
	transport *Transport
	group     group
	born      int64 // when the group was made: no other group shares it
	outcomes  *outcomes
}

var _ driver.Outbox = (*Outbox)(nil)

// NewOutbox makes an outbox in the database of a pool, which stays the caller's. It sees to the tables
// and waits for the database as [New] does.
func NewOutbox(ctx context.Context, db *stdsql.DB, cfg OutboxConfig) (*Outbox, error) {
	t, err := New(ctx, db, cfg.Tables)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t, cfg)
}

// NewPgxOutbox does what [NewOutbox] does over a pgx pool.
func NewPgxOutbox(ctx context.Context, pool *pgxpool.Pool, cfg OutboxConfig) (*Outbox, error) {
	t, err := NewPgx(ctx, pool, cfg.Tables)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t, cfg)
}

// OpenOutbox makes an outbox with connections of its own, from the URL of a transport: the same options,
// and [OutboxConfig].Tables is read from them.
func OpenOutbox(ctx context.Context, u *url.URL, cfg OutboxConfig) (*Outbox, error) {
	t, err := Open(ctx, u)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t.(*Transport), cfg)
}

func newOutbox(ctx context.Context, t *Transport, cfg OutboxConfig) (*Outbox, error) {
	unnamed := cfg.Service == ""
	cfg = cfg.withDefaults()
	o := &Outbox{cfg: cfg, transport: t, outcomes: newOutcomes(t.cfg.Logger.With("outbox", cfg.group()))}
	err := cfg.validate()
	if err == nil {
		err = driver.Subscription{Group: o.Group(), Topics: []string{">"}, Concurrency: 1}.Validate()
	}
	if err == nil && unnamed {
		err = driver.CheckDefaultService(ctx, t, outboxHandler)
	}
	if err == nil {
		err = t.retry(ctx, o.prepare)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sql: %w", err), t.Close(ctx))
	}
	return o, nil
}

// prepare makes the group.
func (o *Outbox) prepare(ctx context.Context) (err error) {
	t := o.transport
	if o.group, err = t.groups.ensure(ctx, o.Group(), driver.OrderedByKey); err != nil {
		return err
	}
	o.born, _, err = number(ctx, t.pool, t.sql(`SELECT created_at FROM {groups} WHERE id = ?`), o.group.id)
	return err
}

// Group returns <service>.outbox.
func (o *Outbox) Group() string { return o.cfg.group() }

func (c OutboxConfig) group() string { return c.Service + "." + outboxHandler }

// PublishTx inserts the messages into the outbox, in the user's transaction.
func (o *Outbox) PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error {
	if o.transport.leases.isClosed() {
		return fmt.Errorf("sql: outbox: %w", driver.ErrClosed)
	}
	inserted, err := o.transport.publisher.insertTx(ctx, tx, topic, msgs, o.insert)
	if err == nil && inserted == 0 && len(msgs) > 0 {
		err = o.nowhere(ctx, tx)
	}
	if err != nil {
		return fmt.Errorf("sql: outbox: %w", err)
	}
	// The commit comes in a moment: from now on, relays look often for a while.
	o.transport.waker.published(topic)
	return nil
}

// nowhere returns why nothing was inserted.
func (o *Outbox) nowhere(ctx context.Context, tx any) error {
	ex, _, err := o.transport.userTx(tx)
	if err == nil {
		err = o.transport.rolledBack(ctx, ex)
	}
	if err == nil {
		err = fmt.Errorf("%w (or somebody has deleted the outbox %s: restart the service)", errElsewhere, o.Group())
	}
	return err
}

// insert returns the insert of a batch into the outbox, and not into one of the same name elsewhere.
func (o *Outbox) insert(b batch, arrays bool) (query string, args []any) {
	p, m := o.transport.publisher, b.rows[0]
	if p.name != Postgres || len(b.rows) > 1 || m.delay > 0 {
		return p.insertSome(b, arrays, p.inOpenTx(o.group.only(o.born)))
	}
	in := stateReady
	if m.key != 0 {
		in = stateKeyed
	}
	return p.sql(insertOnePostgres), []any{int(in), m.key, m.key, b.topic, m.uuid, m.headers, m.payload, o.group.id, o.born}
}

// PoisonQueue returns where the messages are that the transport would not take.
func (o *Outbox) PoisonQueue() driver.PoisonQueue { return o.transport.PoisonQueue(o.Group()) }

// pendingQuery reads the index alone, and one row: ids are given out in the order of first_at.
const pendingQuery = `SELECT p.n, COALESCE({now} - CASE WHEN m.first_at < 0 THEN 0 ELSE m.first_at END, 0) FROM (
	SELECT count(*) AS n, min(id) AS id FROM {messages} WHERE group_id = ? AND state IN ({ready}, {delayed}, {keyed}, {keyhead})
) p LEFT JOIN {messages} m ON m.id = p.id`

// Stats counts what is committed and not relayed yet, by every process that shares the outbox.
func (o *Outbox) Stats(ctx context.Context) (stats driver.OutboxStats, err error) {
	type row struct{ n, age int64 }
	all, err := collect(ctx, o.transport.pool, func(r rows, v *row) error { return r.Scan(&v.n, &v.age) }, o.transport.sql(pendingQuery), o.group.id)
	if err != nil {
		return stats, fmt.Errorf("sql: outbox: %w", err)
	}
	return driver.OutboxStats{Pending: int(all[0].n), OldestAge: max(time.Duration(all[0].age)*time.Microsecond, 0)}, nil
}

// Problem returns why the relay of this process does not move messages, of any of their topics; nil if it
// does.
func (o *Outbox) Problem() error { return o.outcomes.problem() }

// Close ends the relay, and gives back what it holds.
func (o *Outbox) Close(ctx context.Context) error { return o.transport.Close(ctx) }
