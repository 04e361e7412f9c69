package sql

import (
	"cmp"
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// OutboxConfig configures an [Outbox]. The zero value is ready to use on PostgreSQL.
type OutboxConfig struct {
	// Tables configures the tables of the outbox: the same as a transport's, created and migrated
	// the same way. Several services may share them.
	Tables Config
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
	outboxHandler   = "outbox"
	defaultBatch    = 1000
	defaultPatience = 10 * time.Second
)

func (c OutboxConfig) withDefaults() OutboxConfig {
	c.Service = cmp.Or(c.Service, driver.DefaultService())
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

// An Outbox is a [driver.Outbox] in the tables of this package. Its messages are in a group that only
// [bus.Bus.InTx] publishes to and only relays consume. Its methods may be called concurrently.
type Outbox struct {
	cfg       OutboxConfig
	transport *Transport
	group     group
	born      int64 // when the group was created, in microseconds; identifies it
	outcomes  *outcomes
}

var _ driver.Outbox = (*Outbox)(nil)

// NewOutbox returns an outbox in the database of db, which the caller owns. Like [New], it creates and
// migrates the tables, and blocks until the database can be reached or ctx is done.
func NewOutbox(ctx context.Context, db *stdsql.DB, cfg OutboxConfig) (*Outbox, error) {
	t, err := New(ctx, db, cfg.Tables)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t, cfg)
}

// NewPgxOutbox does the same as [NewOutbox] with a pgx pool.
func NewPgxOutbox(ctx context.Context, pool *pgxpool.Pool, cfg OutboxConfig) (*Outbox, error) {
	t, err := NewPgx(ctx, pool, cfg.Tables)
	if err != nil {
		return nil, err
	}
	return newOutbox(ctx, t, cfg)
}

// OpenOutbox returns an outbox with its own connections, for the URL of a transport. The URL's options replace
// cfg.Tables.
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
	o := &Outbox{cfg: cfg, transport: t, outcomes: newOutcomes(t.core.Config.Logger.With("outbox", cfg.group()))}
	err := cfg.validate()
	if err == nil {
		err = driver.Subscription{Group: o.Group(), Topics: []string{">"}, Concurrency: 1}.Validate()
	}
	if err == nil && unnamed {
		err = driver.CheckDefaultService(ctx, t, outboxHandler)
	}
	if err == nil {
		err = t.core.Retry(ctx, o.prepare)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sql: %w", err), t.Close(ctx))
	}
	return o, nil
}

// prepare finds or creates the group.
func (o *Outbox) prepare(ctx context.Context) (err error) {
	t := o.transport
	if o.group, err = t.core.groups.ensure(ctx, o.Group(), driver.OrderedByKey); err != nil {
		return err
	}
	o.born, _, err = database.Number(ctx, t.core.Pool, t.core.SQL(`SELECT created_at FROM {groups} WHERE id = ?`), o.group.id)
	return err
}

// Group returns <service>.outbox.
func (o *Outbox) Group() string { return o.cfg.group() }

func (c OutboxConfig) group() string { return c.Service + "." + outboxHandler }

// PublishTx inserts the messages into the outbox in the user's transaction. It returns an error, and no [driver.UnroutableError],
// if tx is not a transaction on the outbox's database. The relay publishes the messages after the commit.
func (o *Outbox) PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error {
	if o.transport.core.leases.isClosed() {
		return fmt.Errorf("sql: outbox: %w", driver.ErrClosed)
	}
	inserted, err := o.transport.core.publisher.insertTx(ctx, tx, topic, msgs, o.insert)
	if err == nil && inserted == 0 && len(msgs) > 0 {
		err = o.noRowsError(ctx, tx)
	}
	if err != nil {
		return fmt.Errorf("sql: outbox: %w", err)
	}
	// The transaction is about to commit; the relays now poll often for a while.
	o.transport.core.waker.published(topic)
	return nil
}

// noRowsError returns the reason why nothing was inserted.
func (o *Outbox) noRowsError(ctx context.Context, tx any) error {
	ex, _, err := o.transport.core.UserTx(tx)
	if err == nil {
		err = o.transport.core.RolledBack(ctx, ex)
	}
	if err == nil {
		err = fmt.Errorf("%w (or the group %s was deleted: restart the service)", database.ErrElsewhere, o.Group())
	}
	return err
}

// insert returns the statement that inserts a batch into this outbox, and not into one of the same name in another database.
func (o *Outbox) insert(b batch, arrays bool) (query string, args []any) {
	p, m := o.transport.core.publisher, b.rows[0]
	if p.Name != Postgres || len(b.rows) > 1 || m.delay > 0 {
		return p.insertSome(b, arrays, p.inOpenTx(o.group.only(o.born)))
	}
	in := database.StateReady
	if m.key != 0 {
		in = database.StateKeyed
	}
	return p.SQL(insertOnePostgres), []any{int(in), m.key, m.key, b.topic, m.uuid, m.headers, m.payload, o.group.id, o.born}
}

// PoisonQueue returns the poison queue of the outbox, with the messages that the transport has refused.
func (o *Outbox) PoisonQueue() driver.PoisonQueue { return o.transport.PoisonQueue(o.Group()) }

// pendingQuery reads a bounded number of index entries of each state, and one row: the lowest id has the earliest first_at.
const (
	pendingQuery = `SELECT p.n, COALESCE({now} - CASE WHEN m.first_at < 0 THEN 0 ELSE m.first_at END, 0) FROM (
	SELECT count(*) AS n, min(id) AS id FROM (` +
		pendingIn + `{ready}` + pendingOrder + ` UNION ALL ` +
		pendingIn + `{delayed}` + pendingOrder + ` UNION ALL ` +
		pendingIn + `{keyed}` + pendingOrder + ` UNION ALL ` +
		pendingIn + `{keyhead}` + pendingOrder + `) w
) p LEFT JOIN {messages} m ON m.id = p.id`
	pendingIn    = `SELECT id FROM (SELECT id FROM {messages} {force} WHERE group_id = ? AND state = `
	pendingOrder = ` ORDER BY pos, id LIMIT ?) s`
)

// Stats returns the number and the greatest age of the messages that are committed and not relayed yet, of all processes that share the
// outbox. It counts at most 50,000 messages with a key and 50,000 without one; OldestAge is that of the oldest message counted.
func (o *Outbox) Stats(ctx context.Context) (stats driver.OutboxStats, err error) {
	type row struct{ n, age int64 }
	args := slices.Repeat([]any{o.group.id, inspectAtMost}, 4)
	all, err := database.Collect(ctx, o.transport.core.Pool, func(r database.Rows, v *row) error { return r.Scan(&v.n, &v.age) }, o.transport.core.SQL(pendingQuery), args...)
	if err != nil {
		return stats, fmt.Errorf("sql: outbox: %w", err)
	}
	return driver.OutboxStats{Pending: int(all[0].n), OldestAge: max(time.Duration(all[0].age)*time.Microsecond, 0)}, nil
}

// Problem returns the error that keeps the relay of this process from publishing messages of any topic, nil if there
// is none.
func (o *Outbox) Problem() error { return o.outcomes.problem() }

// Close stops the relay, gives back its unsettled messages, and closes the outbox's transport.
func (o *Outbox) Close(ctx context.Context) error { return o.transport.Close(ctx) }
