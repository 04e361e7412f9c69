package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/waitcounter"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// A Transport is a [driver.Transport] over a database. Its methods may be called concurrently. [Open]
// returns one; close it after use.
type Transport struct {
	core    *core
	commits *groupCommit

	unroutable atomic.Int64
	publishing waitcounter.Counter // calls of Publish

	closeOnce sync.Once
	closeErr  error
}

var (
	_ driver.Transport   = (*Transport)(nil)
	_ driver.TxPublisher = (*Transport)(nil)
)

// Open returns a transport over a pool, and closes the pool with it. It creates, migrates or checks the tables, and blocks until the
// database can be reached or ctx is done.
func Open(ctx context.Context, over database.Pool, cfg sqlconfig.Config) (*Transport, error) {
	d, err := database.New(over, cfg)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	if err := d.Prepare(ctx); err != nil {
		return nil, fmt.Errorf("sql: open: %w", err)
	}
	t := &Transport{core: newCore(d)}
	t.commits = newGroupCommit(t.core.lifetime, t.core.publisher, committers(d.Name))
	t.core.waker.start()
	t.core.work.Go(t.core.leases.keep)
	t.core.work.Go(retention{t.core}.run)
	return t, nil
}

// Capabilities returns what the transport supports, which is everything.
func (t *Transport) Capabilities() driver.Capabilities {
	return driver.Capabilities{Durable: true, Delay: true, Patterns: true, ByKey: true, Strict: true, Poison: true, Park: true}
}

// Subscribe creates the group if it does not exist, adds the topics that it lacks, and registers a
// consumer. A group without consumers keeps its topics and its order. Subscribe blocks until the database can be reached or ctx
// is done. It returns an error if the group has consumers with another order, and [driver.ErrClosed] after Close.
func (t *Transport) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	f, err := t.core.join(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := t.core.begin(f, s.Topics); err != nil {
		return nil, err
	}
	return f, nil
}

// Publish inserts the messages for every group that subscribes to the topic, in one transaction: all are
// stored if it returns nil, and none if it returns an error. There is one exception. If the connection breaks
// during the commit, the result is unknown. Publish retries, so messages may be stored twice; if ctx ends first, they may
// be stored although it returns an error. It blocks until the database can be reached or ctx is done. It returns a
// [*driver.UnroutableError] if no group subscribes to the topic, and [driver.ErrClosed] after Close.
func (t *Transport) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.publishing.Add(1) // before it is checked whether Close was called, which waits for it
	defer t.publishing.Add(-1)
	if t.core.leases.isClosed() {
		return driver.ErrClosed
	}
	if len(msgs) == 0 {
		return nil
	}
	if err := driver.ValidateTopic(topic); err != nil {
		return fmt.Errorf("sql: %w", err)
	}
	rows, err := publications(t.core.Statements, msgs)
	if err != nil {
		return fmt.Errorf("sql: publish %s: %w", topic, err)
	}
	inserted, err := t.insert(ctx, topic, rows)
	if err == nil {
		err = t.core.FileGone()
	}
	if errors.Is(err, driver.ErrClosed) { // it may be committed
		err = driver.ClosedMeanwhile(msgs)
	}
	if err != nil {
		return failure(fmt.Sprintf("publish %s: %d messages are not safe", topic, len(msgs)), err)
	}
	if inserted == 0 {
		t.unroutable.Add(int64(len(msgs)))
		return &driver.UnroutableError{Topics: slices.Repeat([]string{topic}, len(msgs)), Strict: t.core.Config.StrictRoutes}
	}
	t.core.waker.published(topic)
	return nil
}

// insert inserts messages. It returns 0 if no group subscribes to the topic, and another number if groups do.
func (t *Transport) insert(ctx context.Context, topic string, rows []publication) (inserted int64, err error) {
	if len(rows) < MaxInsert {
		return t.commits.insert(ctx, batch{topic, rows})
	}
	ctx, cancel := t.core.while(ctx)
	defer cancel()
	err = t.core.Retry(ctx, func(ctx context.Context) error {
		counts, err := t.core.publisher.insertAll(ctx, []batch{{topic, rows}})
		if err == nil {
			inserted = counts[0]
		}
		return err
	})
	return inserted, err
}

// PublishTx inserts the messages for every group that subscribes to the topic, in the user's transaction. Consumers
// get them after its commit, those of this process within milliseconds. It returns a [*driver.UnroutableError] if no group
// subscribes to the topic, and another error if tx is not a transaction on the transport's database.
func (t *Transport) PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error {
	if t.core.leases.isClosed() {
		return driver.ErrClosed
	}
	inserted, err := t.core.publisher.insertTx(ctx, tx, topic, msgs, func(b batch, arrays bool) (string, []any) {
		return t.core.publisher.insertSome(b, arrays, t.core.publisher.inOpenTx(t.core.publisher.wantedHere(topic)))
	})
	if err == nil && inserted == 0 {
		err = t.core.publisher.noRowsError(ctx, tx, topic, len(msgs))
	}
	if err != nil {
		return fmt.Errorf("sql: publish %s in transaction: %w", topic, err)
	}
	t.core.waker.published(topic)
	return nil
}

// PoisonQueue returns the poison queue of a group.
func (t *Transport) PoisonQueue(group string) driver.PoisonQueue {
	return &poisonQueue{core: t.core, group: group}
}

// Close stops the receivers, writes all settlements, waits some seconds for publishes in flight, gives back the unsettled
// messages and ends the leases. It blocks until that is done or ctx is done. Messages that it could not give back are
// redelivered when the lease has expired. Further calls return the result of the first one.
func (t *Transport) Close(ctx context.Context) error {
	t.closeOnce.Do(func() {
		receivers := t.core.leases.close()
		var errs []error
		for _, f := range receivers {
			errs = append(errs, f.Close(ctx))
		}
		for _, f := range receivers {
			errs = append(errs, f.end(ctx))
		}
		t.awaitPublishers(ctx)
		t.core.cancel(driver.ErrClosed)
		errs = append(errs, t.release(ctx))
		t.closeErr = errors.Join(errs...)
	})
	return t.closeErr
}

// awaitPublishers waits for publishes in flight, at most closePatience: a publisher without a deadline waits as long as the
// database is away.
func (t *Transport) awaitPublishers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closePatience)
	defer cancel()
	_ = t.publishing.Wait(ctx) // then their errors say that the messages may be stored
}

// closePatience is how long Close waits for publishers.
const closePatience = 5 * time.Second

// releaseGrace is how long Close may take to close the connections after its context is done.
const releaseGrace = 250 * time.Millisecond

// release waits for the goroutines and closes the connections. If the network drops packets, the connections close
// later in the background, because the driver waits for the server to confirm a cancellation.
func (t *Transport) release(ctx context.Context) error {
	released := make(chan struct{})
	go func() {
		defer close(released)
		t.core.work.Wait()
		t.core.Pool.Close()
	}()
	select {
	case <-released:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-released:
		return nil
	case <-time.After(releaseGrace): // enough for everything that does not wait for the network
		return fmt.Errorf("sql: close the connections: %w", context.Cause(ctx))
	}
}
