package compare_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/sql"
)

// waiting is the number of messages when the drain begins.
const waiting = 100_000

// BenchmarkDrain measures how fast a trivial handler consumes a backlog: leat with its full standard
// stack and a concurrency of 100; River with 2000 workers and the settings of its own benchmark;
// watermill-sql, which has no stack, in batches of 100.
func BenchmarkDrain(b *testing.B) {
	var leat, river, stock float64
	for b.Loop() {
		leat += rate(b, drainLeat)
		river += rate(b, drainRiver)
		stock += rate(b, drainStock)
	}
	b.ReportMetric(leat/float64(b.N), "leat-msg/s")
	b.ReportMetric(river/float64(b.N), "river-job/s")
	b.ReportMetric(stock/float64(b.N), "watermill-sql-msg/s")
	b.ReportMetric(leat/river, "leat/river")
	b.ReportMetric(leat/stock, "leat/watermill-sql")
	b.ReportMetric(0, "ns/op")
}

// rate returns the messages per second. A peer returns a function that starts the drain and waits for its end.
func rate(b *testing.B, peer func(*testing.B, world) (drain func())) float64 {
	w := newWorld(b)
	defer w.close()
	drain := peer(b, w)
	_, err := w.pool.Exec(context.Background(), "VACUUM ANALYZE")
	require.NoError(b, err)
	began := time.Now()
	drain()
	return waiting / time.Since(began).Seconds()
}

// world is a PostgreSQL schema for one measurement.
type world struct {
	url, schema string
	pool        *pgxpool.Pool
	last        *[]func() // what is closed with it, in reverse
}

func newWorld(b *testing.B) world {
	w := world{url: testenv.Postgres(b), schema: fmt.Sprintf("leat_bench_%08x", rand.Uint32()), last: new([]func())}
	cfg, err := pgxpool.ParseConfig(w.url)
	require.NoError(b, err)
	cfg.ConnConfig.RuntimeParams["search_path"] = w.schema
	cfg.MaxConns = 20
	w.pool, err = pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(b, err)
	_, err = w.pool.Exec(context.Background(), "CREATE SCHEMA "+w.schema)
	require.NoError(b, err)
	return w
}

func (w world) later(f func()) { *w.last = append(*w.last, f) }

func (w world) close() {
	for _, f := range slices.Backward(*w.last) {
		f()
	}
	_, _ = w.pool.Exec(context.Background(), "DROP SCHEMA "+w.schema+" CASCADE")
	w.pool.Close()
}

type orderPaid struct {
	OrderID string `json:"order_id"`
	Cents   int    `json:"cents"`
}

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }

func newOrder(i int) orderPaid { return orderPaid{OrderID: fmt.Sprintf("o-%08d", i), Cents: i} }

func newMessages(b *testing.B, n int) []*message.Message {
	encoder := bus.Encoder{Source: "bench"}
	msgs := make([]*message.Message, n)
	for i := range msgs {
		var err error
		msgs[i], err = encoder.Encode(context.Background(), newOrder(i))
		require.NoError(b, err)
	}
	return msgs
}

// counter is done after a number of messages.
type counter struct {
	n    atomic.Int64
	done chan struct{}
}

func newCounter() *counter { return &counter{done: make(chan struct{})} }

func (c *counter) add() {
	if c.n.Add(1) == waiting {
		close(c.done)
	}
}

func drainLeat(b *testing.B, w world) func() {
	ctx := context.Background()
	u, err := url.Parse(w.url)
	require.NoError(b, err)
	q := u.Query()
	q.Set("schema", w.schema)
	u.RawQuery = q.Encode()
	transport, err := sql.Open(ctx, u)
	require.NoError(b, err)
	bs, err := bus.New(transport, bus.Config{Service: "bench", Stack: middleware.Standard(middleware.Config{})})
	require.NoError(b, err)
	handled := newCounter()
	require.NoError(b, bs.Handle(handlers.Func("ledger", func(context.Context, orderPaid) error {
		handled.add()
		return nil
	}, handlers.Concurrency(100))))
	feed, err := transport.Subscribe(ctx, driver.Subscription{Group: "bench.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1})
	require.NoError(b, err)
	for range waiting / 1000 {
		require.NoError(b, transport.Publish(ctx, "order.paid.v1", newMessages(b, 1000)...))
	}
	require.NoError(b, feed.Close(ctx))
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	w.later(func() {
		stop()
		require.NoError(b, <-ended)
		require.NoError(b, bs.Close(context.Background()))
	})
	return func() {
		go func() { ended <- bs.Run(ctx) }()
		<-handled.done
	}
}

func (orderPaid) Kind() string { return "order_paid" }

type riverWorker struct {
	river.WorkerDefaults[orderPaid]
	handled *counter
}

func (w *riverWorker) Work(context.Context, *river.Job[orderPaid]) error {
	w.handled.add()
	return nil
}

func drainRiver(b *testing.B, w world) func() {
	ctx := context.Background()
	driver := riverpgxv5.New(w.pool)
	migrator, err := rivermigrate.New(driver, nil)
	require.NoError(b, err)
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	require.NoError(b, err)
	worker := &riverWorker{handled: newCounter()}
	workers := river.NewWorkers()
	river.AddWorker(workers, worker)
	client, err := river.NewClient(driver, &river.Config{
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		Queues:            map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2000}},
		Workers:           workers,
	})
	require.NoError(b, err)
	for range waiting / 1000 {
		jobs := make([]river.InsertManyParams, 1000)
		for i := range jobs {
			jobs[i].Args = newOrder(i)
		}
		_, err := client.InsertManyFast(ctx, jobs)
		require.NoError(b, err)
	}
	w.later(func() { require.NoError(b, client.Stop(ctx)) })
	return func() {
		require.NoError(b, client.Start(ctx))
		<-worker.handled.done
	}
}

func drainStock(b *testing.B, w world) func() {
	cfg, err := pgx.ParseConfig(w.url)
	require.NoError(b, err)
	cfg.RuntimeParams["search_path"] = w.schema
	db := stdlib.OpenDB(*cfg)
	w.later(func() { _ = db.Close() })
	schema := wsql.DefaultPostgreSQLSchema{SubscribeBatchSize: 100, GeneratePayloadType: func(string) string { return "BYTEA" }}
	sub, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
		SchemaAdapter: schema, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true, ConsumerGroup: "ledger",
	}, nil)
	require.NoError(b, err)
	require.NoError(b, sub.SubscribeInitialize("orders"))
	pub, err := wsql.NewPublisher(db, wsql.PublisherConfig{SchemaAdapter: schema}, nil)
	require.NoError(b, err)
	for range waiting / 1000 {
		require.NoError(b, pub.Publish("orders", newMessages(b, 1000)...))
	}
	return func() {
		got, err := sub.Subscribe(context.Background(), "orders")
		require.NoError(b, err)
		for range waiting {
			(<-got).Ack()
		}
		w.later(func() {
			go func() {
				for m := range got {
					m.Nack()
				}
			}()
			require.NoError(b, sub.Close())
		})
	}
}
