package faults_test

import (
	"context"
	stdsql "database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/outbox"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// patience is how long a test waits for an event. It is long, because the machine may be busy.
const patience = 5 * time.Minute

// placed is the event of an order. N is the number of the customer's order, without gaps.
type placed struct {
	ID       string
	Customer string
	N        int
}

func (placed) EventType() (name string, version int) { return "order.placed", 1 }
func (e placed) PartitionKey() string                { return e.Customer }

// noted is another event of the same customers.
type noted placed

func (noted) EventType() (name string, version int) { return "order.noted", 1 }
func (e noted) PartitionKey() string                { return e.Customer }

// A place has the tables and the exchange of one test's services.
type place struct {
	Postgres, Broker string
	Schema           string
}

const customers = 48

// newPlace returns a place with its own schema and exchange, and a group that collects all events.
func newPlace(t testing.TB) (place, *collector) {
	name := fmt.Sprintf("leat_faults_%08x", rand.Uint32())
	p := place{Schema: name}
	p.Postgres = testenv.WithOption(t, testenv.WithOption(t, testenv.WithOption(t, testenv.Postgres(t), "schema", name), "search_path", name), "lease", "1s")
	p.Broker = testenv.WithOption(t, testenv.RabbitMQ(t), "exchange", name)
	admin := openDB(t, testenv.Postgres(t))
	execute(t, admin, "CREATE SCHEMA "+name)
	t.Cleanup(func() { execute(t, admin, "DROP SCHEMA "+name+" CASCADE"); require.NoError(t, admin.Close()) })
	db := openDB(t, p.Postgres)
	execute(t, db, `CREATE TABLE customers (name text PRIMARY KEY, orders int NOT NULL)`)
	execute(t, db, `CREATE TABLE orders (id text PRIMARY KEY, customer text NOT NULL, n int NOT NULL)`)
	execute(t, db, `INSERT INTO customers SELECT 'c' || n, 0 FROM generate_series(0, 47) n`)
	require.NoError(t, db.Close())
	t.Cleanup(func() {
		testenv.Forget(t, testenv.WithOption(t, testenv.RabbitMQ(t), "exchange", name), name+".collector")
	})
	return p, collect(t, p)
}

func openDB(t testing.TB, raw string) *stdsql.DB {
	raw = testenv.WithOption(t, raw, "connect_timeout", "60") // the machine may be busy
	u, err := url.Parse(raw)
	require.NoError(t, err)
	db, _, err := sql.OpenDB(u)
	require.NoError(t, err)
	return db
}

func execute(t testing.TB, db *stdsql.DB, query string) {
	t.Helper()
	testenv.Insist(t, func() error {
		_, err := db.ExecContext(context.Background(), query)
		return err
	})
}

// A collector is a group on RabbitMQ that records the events.
type collector struct {
	mu    sync.Mutex
	got   map[string]placed // by id
	order map[string][]int  // by customer; the first delivery of each
	twice int
}

func collect(t testing.TB, p place) *collector {
	ctx, cancel := context.WithCancel(context.Background())
	opening, opened := context.WithTimeout(ctx, patience)
	defer opened()
	transport, err := transports.Open(opening, p.Broker)
	require.NoError(t, err)
	feed, err := transport.Subscribe(ctx, driver.Subscription{Group: p.Schema + ".collector", Topics: []string{"order.>"}, Concurrency: 1})
	require.NoError(t, err)
	c := &collector{got: map[string]placed{}, order: map[string][]int{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			d, err := feed.Next(ctx)
			if err != nil {
				return
			}
			c.take(t, d.Message)
			_ = d.Settler.Ack()
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		closing, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, transport.Close(closing))
	})
	return c
}

func (c *collector) take(t testing.TB, msg *message.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var e placed
	if err := json.Unmarshal(msg.Payload, &e); err != nil {
		t.Errorf("%s: %v", msg.Payload, err)
		return
	}
	if _, ok := c.got[e.ID]; ok {
		c.twice++
		return
	}
	c.got[e.ID] = e
	c.order[e.Customer] = append(c.order[e.Customer], e.N)
}

func (c *collector) count() (n, twice int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got), c.twice
}

// balance waits until every row has its event. It checks that every event has its row, and that each customer's events
// were in order.
func (c *collector) balance(t *testing.T, p place) {
	t.Helper()
	db := openDB(t, p.Postgres)
	defer func() { _ = db.Close() }()
	var want map[string]bool
	require.Eventually(t, func() bool { // a killed service may have committed late
		want = orders(t, db)
		n, _ := c.count()
		return n == len(want)
	}, patience, 50*time.Millisecond, "rows without their event, or events without their row")
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.got {
		require.True(t, want[id], "%s is an event without its row", id)
	}
	require.Len(t, c.got, len(want))
	for customer, order := range c.order {
		for i, n := range order {
			require.Equal(t, i+1, n, "customer %s: %v", customer, order)
		}
	}
	t.Logf("%d rows and events, %d copies", len(want), c.twice)
}

// orders returns the ids of the rows.
func orders(t *testing.T, db *stdsql.DB) map[string]bool {
	rows, err := db.QueryContext(context.Background(), `SELECT id FROM orders`)
	require.NoError(t, err)
	defer func() { _ = rows.Close() }()
	ids := map[string]bool{}
	for rows.Next() {
		var id string
		require.NoError(t, rows.Scan(&id))
		ids[id] = true
	}
	require.NoError(t, rows.Err())
	return ids
}

// A service has a pool, and a bus with an outbox.
type service struct {
	db     *stdsql.DB
	bus    *bus.Bus
	outbox *outbox.Outbox
}

// newService returns a service whose transport is wrapped by wrap, which may be nil.
func newService(t testing.TB, p place, wrap func(driver.Transport) driver.Transport) *service {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s := &service{db: openDB(t, p.Postgres)}
	u, err := url.Parse(p.Postgres)
	require.NoError(t, err)
	s.outbox, err = outbox.Open(ctx, u, outbox.Config{Service: "shop", Patience: time.Second})
	require.NoError(t, err)
	transport, err := transports.Open(ctx, p.Broker)
	require.NoError(t, err)
	if wrap != nil {
		transport = wrap(transport)
	}
	s.bus, err = bus.New(transport, bus.Config{Service: "shop", Outbox: s.outbox})
	require.NoError(t, err)
	return s
}

func (s *service) close(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	require.NoError(t, s.bus.Close(ctx))
	require.NoError(t, s.db.Close())
}

// run runs the relay until the end of the test or until stop is called.
func (s *service) run(t testing.TB) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.bus.Run(ctx) }()
	<-s.bus.Running()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
		s.close(t)
	})
	t.Cleanup(stop)
	return stop
}

var errUndone = errors.New("the user changed his mind")

// order places one order, or rolls back.
func (s *service) order(ctx context.Context, customer string, undo bool) (err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	e := placed{ID: bus.NewID(), Customer: customer}
	if err := tx.QueryRowContext(ctx, `UPDATE customers SET orders = orders + 1 WHERE name = $1 RETURNING orders`, customer).Scan(&e.N); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders VALUES ($1, $2, $3)`, e.ID, e.Customer, e.N); err != nil {
		return err
	}
	var event bus.Event = e
	if e.N%3 == 0 {
		event = noted(e)
	}
	if err := s.bus.InTx(tx).Publish(ctx, event); err != nil {
		return err
	}
	if undo {
		return errUndone
	}
	return tx.Commit()
}

// trade places orders in several goroutines until ctx is done, each one order per tick; 30 % roll back.
func (s *service) trade(ctx context.Context, goroutines int, every time.Duration) {
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for ctx.Err() == nil {
				_ = s.order(ctx, fmt.Sprintf("c%d", rand.IntN(customers)), rand.IntN(10) < 3)
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
}

// orders places n orders.
func (s *service) orders(t testing.TB, n int) {
	for i := range n {
		testenv.Insist(t, func() error { return s.order(context.Background(), fmt.Sprintf("c%d", i%customers), false) })
	}
}
