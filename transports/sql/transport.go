package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/intx"
)

// Transport is a [driver.Transport] over a database. Its methods may be called concurrently.
type Transport struct {
	*core
	commits *groupCommit

	unroutable atomic.Int64

	closeOnce sync.Once
	closeErr  error
}

var (
	_ driver.Transport   = (*Transport)(nil)
	_ driver.TxPublisher = (*Transport)(nil)
)

// New makes a transport over a pool of database/sql, which stays the caller's. It sees to the tables
// first, as [Config.Migrate] says, and waits for the database as long as ctx allows. The transport keeps no
// connection while a handler runs; two are enough. If handlers hold connections of the same pool, as those of
// an [Inbox] do, it needs one for each of them and three more.
func New(ctx context.Context, db *stdsql.DB, cfg Config) (*Transport, error) {
	tx := &stdsql.TxOptions{Isolation: stdsql.LevelReadCommitted}
	if cfg.Dialect == SQLite {
		tx = nil // it knows one level, which is the highest
	}
	return open(ctx, &stdPool{db: db, tx: tx}, cfg)
}

// NewPgx does what [New] does over a pgx pool. Besides the pool's connections it has one of its own, on which it
// listens.
func NewPgx(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Transport, error) {
	cfg.Dialect = Postgres
	return open(ctx, &pgxPool{pool: pool}, cfg)
}

func open(ctx context.Context, over pool, cfg Config) (*Transport, error) {
	d, err := newDatabase(over, cfg)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	if err := (schema{d}).prepare(ctx); err != nil {
		return nil, fmt.Errorf("sql: open: %w", err)
	}
	t := &Transport{core: newCore(d)}
	t.commits = newGroupCommit(t.lifetime, t.publisher, d.committers)
	t.waker.start()
	t.work.Go(t.leases.keep)
	t.work.Go(retention{t.core}.run)
	return t, nil
}

// Capabilities returns everything.
func (t *Transport) Capabilities() driver.Capabilities {
	return driver.Capabilities{Durable: true, Delay: true, Patterns: true, ByKey: true, Strict: true, Poison: true, Park: true}
}

// Subscribe makes the group if it is new, adds the topics it does not have yet, and registers a
// consumer of it. A group keeps its topics and its order when its consumers go.
func (t *Transport) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	f, err := t.join(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := t.begin(f, s.Topics); err != nil {
		return nil, err
	}
	return f, nil
}

// join registers a consumer of the group.
func (t *Transport) join(ctx context.Context, s driver.Subscription) (*feed, error) {
	if t.leases.isClosed() {
		return nil, driver.ErrClosed
	}
	ctx, cancel := t.while(ctx)
	defer cancel()
	beside := intx.Is(ctx) && t.name == SQLite
	if beside {
		ctx, cancel = context.WithTimeout(ctx, besideTx)
		defer cancel()
	}
	id := newConsumerID()
	g, err := t.groups.subscribe(ctx, s, id)
	if beside && errors.Is(err, context.DeadlineExceeded) {
		err = errBesideTx
	}
	if err != nil {
		return nil, failure(fmt.Sprintf("subscribe group %q", s.Group), err)
	}
	return newFeed(t.core, newConsumer(id, g), s), nil
}

// besideTx is how long a subscription waits for the right to write while a transaction of its caller's is
// open. If that transaction has the right, it would wait for its own end.
const besideTx = time.Second

var errBesideTx = errors.New("SQLite has one writer, which is the open transaction; run the bus or publish once before it begins")

// begin makes the feed take messages, woken by those of some topics.
func (t *Transport) begin(f *feed, topics []string) error {
	return t.leases.add(f.consumer, f, func() {
		t.waker.add(f.consumer, topics)
		f.start()
	})
}

// Publish inserts the messages for every group that wants them, in one transaction: all are there
// when it returns nil, none when it returns another error, but for one case. Where the connection
// breaks while the database commits, nobody can tell; Publish tries again, so that messages may be
// there twice. It blocks as long as the database is away and ctx allows.
func (t *Transport) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if t.leases.isClosed() {
		return driver.ErrClosed
	}
	if len(msgs) == 0 {
		return nil
	}
	if err := driver.ValidateTopic(topic); err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	rows, err := t.publications(msgs)
	if err != nil {
		return fmt.Errorf("sql: publish %s: %w", topic, err)
	}
	inserted, err := t.insert(ctx, topic, rows)
	if err == nil {
		err = t.file.gone()
	}
	if err != nil {
		return failure(fmt.Sprintf("publish %s: %d messages are not safe", topic, len(msgs)), err)
	}
	if inserted == 0 {
		t.unroutable.Add(int64(len(msgs)))
		return &driver.UnroutableError{Topics: slices.Repeat([]string{topic}, len(msgs)), Strict: t.cfg.Unroutable == UnroutableError}
	}
	t.waker.published(topic)
	return nil
}

// insert returns how many rows were made, 0 where no group wants the topic.
func (t *Transport) insert(ctx context.Context, topic string, rows []publication) (inserted int64, err error) {
	if len(rows) < maxInsert {
		return t.commits.insert(ctx, batch{topic, rows})
	}
	ctx, cancel := t.while(ctx)
	defer cancel()
	err = t.retry(ctx, func(ctx context.Context) error {
		counts, err := t.publisher.insertAll(ctx, []batch{{topic, rows}})
		if err == nil {
			inserted = counts[0]
		}
		return err
	})
	return inserted, err
}

// PublishTx inserts the messages for every group that wants them, in the user's transaction. Consumers
// get them after its commit, within milliseconds in this process.
func (t *Transport) PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error {
	if t.leases.isClosed() {
		return driver.ErrClosed
	}
	inserted, err := t.publisher.insertTx(ctx, tx, topic, msgs, func(b batch, arrays bool) (string, []any) {
		return t.publisher.insertSome(b, arrays, t.inOpenTx(t.publisher.wantedHere(topic)))
	})
	if err == nil && inserted == 0 {
		err = t.publisher.nobody(ctx, tx, topic, len(msgs))
	}
	if err != nil {
		return fmt.Errorf("sql: publish %s in transaction: %w", topic, err)
	}
	t.waker.published(topic)
	return nil
}

// PoisonQueue returns the poison queue of a group.
func (t *Transport) PoisonQueue(group string) driver.PoisonQueue {
	return &poisonQueue{core: t.core, group: group}
}

// Close stops the feeds, gives back what they hold, carries out what is settled and ends the leases.
// It waits for that as long as ctx allows; what it could not give back is redelivered when the lease
// has run out.
func (t *Transport) Close(ctx context.Context) error {
	t.closeOnce.Do(func() {
		feeds := t.leases.close()
		var errs []error
		for _, f := range feeds {
			errs = append(errs, f.Close(ctx))
		}
		for _, f := range feeds {
			errs = append(errs, f.end(ctx))
		}
		t.cancel(driver.ErrClosed)
		errs = append(errs, t.release(ctx))
		t.closeErr = errors.Join(errs...)
	})
	return t.closeErr
}

// releaseGrace is how long a transport's Close may go on after its context is over.
const releaseGrace = 250 * time.Millisecond

// release ends the goroutines and closes the connections. Those of a network that swallows everything close by
// themselves later: the driver waits for the server's answer to a cancellation.
func (t *Transport) release(ctx context.Context) error {
	released := make(chan struct{})
	go func() {
		defer close(released)
		t.work.Wait()
		t.pool.close()
	}()
	select {
	case <-released:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-released:
		return nil
	case <-time.After(releaseGrace): // what needs no network is done by then
		return fmt.Errorf("sql: close the connections: %w", context.Cause(ctx))
	}
}
