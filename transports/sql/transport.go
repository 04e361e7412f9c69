package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/intx"
)

// Transport is a [driver.Transport] over a database. Its methods may be called concurrently.
type Transport struct {
	store    *store
	place    string // this process, for operators
	waker    *waker
	combiner *combiner

	unroutable atomic.Int64

	ctx    context.Context // ends with ErrClosed when the transport closes
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // the goroutines that end with ctx

	mu        sync.Mutex
	feeds     map[*feed]struct{} // those with a lease
	closed    bool
	closeOnce sync.Once
	closeErr  error
}

var _ driver.Transport = (*Transport)(nil)

// New makes a transport over a pool of database/sql, which stays the caller's. It sees to the tables
// first, as [Config.Migrate] says, and waits for the database as long as ctx allows. The transport keeps no
// connection while a handler runs; two are enough. If handlers hold connections of the same pool, as those of
// an [Inbox] do, it needs one for each of them and three more.
func New(ctx context.Context, db *stdsql.DB, cfg Config) (*Transport, error) {
	tx := &stdsql.TxOptions{Isolation: stdsql.LevelReadCommitted}
	if cfg.Dialect == SQLite {
		tx = nil // it knows one level, which is the highest
	}
	return open(ctx, &stdDatabase{db: db, tx: tx}, cfg)
}

// NewPgx is [New] over a pgx pool. Besides the pool's connections it has one of its own, on which it
// listens.
func NewPgx(ctx context.Context, pool *pgxpool.Pool, cfg Config) (*Transport, error) {
	cfg.Dialect = Postgres
	return open(ctx, &pgxDatabase{pool: pool}, cfg)
}

func newStore(db database, cfg Config) (*store, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	statements, err := newStatements(cfg)
	if err != nil {
		return nil, err
	}
	_, isPgx := db.(*pgxDatabase)
	return &store{statements: statements, db: db, quick: relaxed(db), link: new(link), arrays: isPgx}, nil
}

func open(ctx context.Context, db database, cfg Config) (*Transport, error) {
	s, err := newStore(db, cfg)
	if err != nil {
		return nil, fmt.Errorf("sql: %w", err)
	}
	if err := s.prepare(ctx); err != nil {
		return nil, fmt.Errorf("sql: open: %w", err)
	}
	t := &Transport{store: s, place: thisProcess(), feeds: make(map[*feed]struct{})}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	t.combiner = newCombiner(t, s.committers)
	t.waker = newWaker(t)
	t.waker.start()
	t.work.Go(t.renewLeases)
	t.work.Go(t.cleanUp)
	return t, nil
}

// Capabilities is everything.
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
	if t.isClosed() {
		return nil, driver.ErrClosed
	}
	ctx, cancel := t.while(ctx)
	defer cancel()
	beside := intx.Is(ctx) && t.store.name == SQLite
	if beside {
		ctx, cancel = context.WithTimeout(ctx, besideTx)
		defer cancel()
	}
	owner := newConsumerID()
	g, err := t.store.subscribe(ctx, s, owner, t.place)
	if beside && errors.Is(err, context.DeadlineExceeded) {
		err = errBesideTx
	}
	if err != nil {
		return nil, t.failure(fmt.Sprintf("subscribe group %q", s.Group), err)
	}
	return newFeed(t, g, s, owner), nil
}

// besideTx is how long a subscription waits for the right to write while a transaction of its caller's is
// open. If that transaction has the right, it would wait for its own end.
const besideTx = time.Second

var errBesideTx = errors.New("SQLite has one writer, which is the open transaction; run the bus or publish once before it begins")

// begin makes the feed take messages, woken by those of some topics.
func (t *Transport) begin(f *feed, topics []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return driver.ErrClosed
	}
	t.feeds[f] = struct{}{}
	t.waker.add(f, topics)
	f.start()
	return nil
}

// Close stops the feeds, gives back what they hold, carries out what is settled and ends the leases.
// It waits for that as long as ctx allows; what it could not give back comes again when the lease
// has run out.
func (t *Transport) Close(ctx context.Context) error {
	t.closeOnce.Do(func() {
		t.mu.Lock()
		t.closed = true
		var feeds []*feed
		for f := range t.feeds {
			feeds = append(feeds, f)
		}
		t.mu.Unlock()

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
		t.store.db.close()
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

func (t *Transport) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// while is ctx as long as the transport is open.
func (t *Transport) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.ctx, func() { cancel(driver.ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// failure is an error for the caller of what failed.
func (t *Transport) failure(what string, err error) error {
	if errors.Is(err, driver.ErrClosed) {
		return driver.ErrClosed
	}
	return fmt.Errorf("sql: %s: %w", what, err)
}

// renewLeases keeps the feeds' leases. Where the database is away, it tries more often.
func (t *Transport) renewLeases() {
	interval := t.store.cfg.Lease / 3
	wait := interval
	for sleep(t.ctx, wait) {
		t.mu.Lock()
		feeds := make([]*feed, 0, len(t.feeds))
		for f := range t.feeds {
			feeds = append(feeds, f)
		}
		t.mu.Unlock()
		wait = interval
		if len(feeds) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(t.ctx, min(statementTimeout, interval/2))
		err := t.store.renew(ctx, t.store.quick, feeds, t.place)
		cancel()
		if err != nil && t.ctx.Err() == nil {
			err = t.renewAside(feeds, err)
		}
		if err != nil && t.ctx.Err() == nil {
			t.store.temporary(err)
			t.store.cfg.Logger.Warn("leat: sql: renew leases", "err", err)
			wait = min(interval, longestBackoff)
		} else if err == nil {
			t.store.link.works()
		}
	}
}

// renewAside renews leases on a connection of its own if all of the pool's are in use: by handlers, perhaps, that
// work on the messages which would go to others. It returns failed if that is not the reason.
func (t *Transport) renewAside(feeds []*feed, failed error) error {
	pool, ok := t.store.db.(exhaustible)
	if !ok || t.store.name == SQLite || !pool.exhausted() { // its one connection is in use while anything is done
		return failed
	}
	t.store.cfg.Logger.Warn("leat: sql: pool exhausted", "err", failed,
		"hint", "give the pool a connection for each handler that holds one, and three more; in a transaction, publish by InTx")
	ctx, cancel := context.WithTimeout(t.ctx, statementTimeout)
	defer cancel()
	return pool.aside(ctx, failed, func(ex executor) error { return t.store.renew(ctx, ex, feeds, t.place) })
}

// forget ends a feed's lease.
func (t *Transport) forget(ctx context.Context, f *feed) error {
	t.mu.Lock()
	_, there := t.feeds[f]
	delete(t.feeds, f)
	t.mu.Unlock()
	if !there {
		return nil
	}
	return t.store.retry(ctx, func(ctx context.Context) error { return t.store.leave(ctx, f.owner) })
}

// statementTimeout is for a network that swallows packets.
const statementTimeout = 15 * time.Second
