package bench_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	stock "github.com/ThreeDotsLabs/watermill-amqp/v2/pkg/amqp"
	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/forwarder"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/amqp"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/inbox"
	"github.com/leatbus/leat/transports/sql/outbox"
)

//	go test ./bench -run xxx -bench OutboxDrain -benchtime 50000x
//	go test ./bench -run xxx -bench OutboxLatency -benchtime 1x -v
//	go test ./bench -run xxx -bench OutboxInsert -benchtime 1x -v
//	go test ./bench -run xxx -bench Inbox -benchtime 1x -v

func (w sqlWorld) outbox(tb testing.TB) *outbox.Outbox {
	o, err := outbox.NewPgx(context.Background(), w.pool, outbox.Config{Service: "bench", Tables: sql.Config{Schema: w.schema}})
	require.NoError(tb, err)
	return o
}

// openAlone opens a transport with its own exchange.
func (w *amqpWorld) openAlone() *amqp.Transport {
	u, err := url.Parse(w.broker)
	require.NoError(w.tb, err)
	u.RawQuery = url.Values{"exchange": {w.prefix}}.Encode()
	t, err := amqp.Open(context.Background(), u)
	require.NoError(w.tb, err)
	w.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = t.Close(ctx)
		_ = w.channel().ExchangeDelete(w.prefix, false, false)
	})
	return t.(*amqp.Transport)
}

// write commits messages to the outbox, and waits until the server is idle.
func (w sqlWorld) write(tb testing.TB, o *outbox.Outbox, msgs []*message.Message) {
	ctx := context.Background()
	for chunk := range slices.Chunk(msgs, 1000) {
		require.NoError(tb, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error { return o.PublishTx(ctx, tx, sqlTopic, chunk...) }))
	}
	w.run(tb, "VACUUM ANALYZE "+w.schema+".leat_messages")
}

// BenchmarkOutboxDrain measures how fast one relay publishes a backlog of committed rows to a quorum queue of
// RabbitMQ, with confirmations, compared with Watermill's forwarder over watermill-sql.
func BenchmarkOutboxDrain(b *testing.B) {
	drain := func(key func(i int) string) func(b *testing.B) {
		return func(b *testing.B) {
			sw, aw := newSQLWorld(b), newAMQPWorld(b)
			transport := aw.openAlone()
			aw.group(transport, "drain", sqlTopic)
			o := sw.outbox(b)
			defer func() { require.NoError(b, o.Close(context.Background())) }()
			msgs := orderMessages(b, b.N)
			for i, msg := range msgs {
				delete(msg.Metadata, driver.HeaderPartitionKey)
				if k := key(i); k != "" {
					msg.Metadata[driver.HeaderPartitionKey] = k
				}
			}
			sw.write(b, o, msgs)
			ctx, stop := context.WithCancel(context.Background())
			var published atomic.Int64
			b.ResetTimer()
			require.NoError(b, o.Relay(ctx, func(ctx context.Context, topic string, msgs ...*message.Message) error {
				err := transport.Publish(ctx, topic, msgs...)
				if err == nil && int(published.Add(int64(len(msgs)))) >= b.N {
					stop()
				}
				return err
			}))
			report(b)
		}
	}
	b.Run("leat/no keys", drain(func(int) string { return "" }))
	b.Run("leat/a key each", drain(func(i int) string { return fmt.Sprintf("order-%d", i) }))
	b.Run("leat/20 keys", drain(func(i int) string { return fmt.Sprintf("tenant-%d", i%20) }))
	b.Run("forwarder", drainForwarder)
}

// forwarded is the number of messages for the forwarder, whose time is proportional to it.
const forwarded = 2000

func drainForwarder(b *testing.B) {
	sw, aw := newSQLWorld(b), newAMQPWorld(b)
	cfg, err := pgx.ParseConfig(sw.url)
	require.NoError(b, err)
	cfg.RuntimeParams["search_path"] = sw.schema
	db := stdlib.OpenDB(*cfg)
	defer func() { _ = db.Close() }()
	schema := wsql.DefaultPostgreSQLSchema{SubscribeBatchSize: 100}
	sub, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
		SchemaAdapter: schema, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true, PollInterval: 10 * time.Millisecond,
	}, nil)
	require.NoError(b, err)
	require.NoError(b, sub.SubscribeInitialize("forwarder"))
	pub, err := wsql.NewPublisher(db, wsql.PublisherConfig{SchemaAdapter: schema}, nil)
	require.NoError(b, err)
	outbox := forwarder.NewPublisher(pub, forwarder.PublisherConfig{ForwarderTopic: "forwarder"})
	topic := aw.prefix + ".forwarded"
	for chunk := range slices.Chunk(orderMessages(b, forwarded), 500) {
		require.NoError(b, outbox.Publish(topic, chunk...))
	}
	amqpCfg := stock.NewDurableQueueConfig(aw.broker)
	amqpCfg.Publish.ConfirmDelivery = true
	to, err := stock.NewPublisher(amqpCfg, watermill.NopLogger{})
	require.NoError(b, err)
	defer aw.remove(topic)
	counting := &countingPublisher{Publisher: to, want: forwarded, done: make(chan struct{})}
	f, err := forwarder.NewForwarder(sub, counting, watermill.NopLogger{}, forwarder.Config{ForwarderTopic: "forwarder"})
	require.NoError(b, err)
	b.ResetTimer()
	ended := make(chan error, 1)
	go func() { ended <- f.Run(context.Background()) }()
	<-counting.done
	b.ReportMetric(forwarded/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(0, "ns/op")
	b.StopTimer()
	require.NoError(b, f.Close())
	require.NoError(b, <-ended)
}

type countingPublisher struct {
	message.Publisher
	n, want int64
	done    chan struct{}
}

func (p *countingPublisher) Publish(topic string, msgs ...*message.Message) error {
	err := p.Publisher.Publish(topic, msgs...)
	if err == nil && atomic.AddInt64(&p.n, int64(len(msgs))) == p.want {
		close(p.done)
	}
	return err
}

// BenchmarkOutboxLatency measures the time from the commit of an event to RabbitMQ's confirmation, and to a
// handler, at 100 per second.
func BenchmarkOutboxLatency(b *testing.B) {
	sw, aw := newSQLWorld(b), newAMQPWorld(b)
	confirmed := make(chan time.Time, 1)
	bs, err := bus.New(watched{aw.openAlone(), confirmed}, bus.Config{Service: aw.prefix, Outbox: sw.outbox(b), Stack: middleware.Standard(middleware.Config{})})
	require.NoError(b, err)
	handled := make(chan time.Time, 1)
	require.NoError(b, bs.Handle(handlers.Func("ledger", func(context.Context, orderPaid) error {
		handled <- time.Now()
		return nil
	})))
	defer aw.remove(aw.prefix + ".ledger")
	defer aw.remove(aw.prefix + ".ledger.poison")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- bs.Run(ctx) }()
	<-bs.Running()
	var toBroker, toHandler latency
	toBroker.measure(300, func(i int) (committed, arrived time.Time) {
		require.NoError(b, pgx.BeginFunc(ctx, sw.pool, func(tx pgx.Tx) error { return bs.InTx(tx).Publish(ctx, newOrder(i)) }))
		committed = time.Now()
		arrived = <-confirmed
		<-handled
		return committed, arrived
	})
	toHandler.measure(300, func(i int) (committed, arrived time.Time) {
		require.NoError(b, pgx.BeginFunc(ctx, sw.pool, func(tx pgx.Tx) error { return bs.InTx(tx).Publish(ctx, newOrder(i)) }))
		committed = time.Now()
		<-confirmed
		return committed, <-handled
	})
	b.Logf("\n\tto RabbitMQ %s\n\tto handler  %s", toBroker, toHandler)
	stop()
	require.NoError(b, <-ended)
	require.NoError(b, bs.Close(context.Background()))
}

// watched records when a message was confirmed.
type watched struct {
	driver.Transport
	confirmed chan time.Time
}

func (w watched) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	err := w.Transport.Publish(ctx, topic, msgs...)
	w.confirmed <- time.Now()
	return err
}

// compareTx measures a user's transaction with and without a statement of leat, in alternating rounds, so that other
// load on the machine affects both: on the existing disk, and on one whose flush takes a millisecond, as on a real
// server. It also measures the transaction with a SELECT 1, the cost of a statement that does nothing. It reports the
// ratios of the medians to those of the user's transaction.
func compareTx(b *testing.B, w sqlWorld, own func(pgx.Tx) error, ours func(*pgxpool.Pool)) {
	ctx := context.Background()
	for _, disk := range []struct{ name, delay string }{{"this disk", "0"}, {"flush of 1 ms", "1000"}} {
		b.Run(disk.name, func(b *testing.B) {
			cfg := w.pool.Config()
			cfg.ConnConfig.RuntimeParams["commit_delay"], cfg.ConnConfig.RuntimeParams["commit_siblings"] = disk.delay, "0"
			pool, err := pgxpool.NewWithConfig(ctx, cfg)
			require.NoError(b, err)
			defer pool.Close()
			cases := []struct {
				name string
				do   func()
				took []time.Duration
			}{
				{name: "own", do: func() { require.NoError(b, pgx.BeginFunc(ctx, pool, own)) }},
				{name: "own and SELECT 1", do: func() {
					require.NoError(b, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
						if err := own(tx); err != nil {
							return err
						}
						_, err := tx.Exec(ctx, `SELECT 1`)
						return err
					}))
				}},
				{name: "own and ours", do: func() { ours(pool) }},
			}
			for range 1500 {
				for i := range cases {
					began := time.Now()
					cases[i].do()
					cases[i].took = append(cases[i].took, time.Since(began))
				}
			}
			median := func(i int) float64 {
				slices.Sort(cases[i].took)
				m := cases[i].took[len(cases[i].took)/2]
				b.Logf("%s: %s", cases[i].name, m)
				return m.Seconds()
			}
			base, trip, with := median(0), median(1), median(2)
			b.ReportMetric(trip/base, "select-1/own")
			b.ReportMetric(with/base, "ours/own")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkOutboxInsert measures what an event adds to a transaction of one row.
func BenchmarkOutboxInsert(b *testing.B) {
	sw := newSQLWorld(b)
	o := sw.outbox(b)
	defer func() { require.NoError(b, o.Close(context.Background())) }()
	bs := outboxBus(b, o)
	sw.run(b, `CREATE TABLE orders (id text PRIMARY KEY, customer text NOT NULL, cents bigint NOT NULL, placed_at timestamptz NOT NULL DEFAULT now())`)
	ctx := context.Background()
	row := func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO orders (id, customer, cents) VALUES ($1, $2, $3)`, bus.NewID(), "Ada", 1999)
		return err
	}
	compareTx(b, sw, row, func(pool *pgxpool.Pool) {
		require.NoError(b, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := row(tx); err != nil {
				return err
			}
			return bs.InTx(tx).Publish(ctx, newOrder(1))
		}))
	})
}

// BenchmarkInbox measures a handler's transaction of one update, with and without the inbox.
func BenchmarkInbox(b *testing.B) {
	sw := newSQLWorld(b)
	ctx := context.Background()
	sw.run(b, `CREATE TABLE accounts (id int PRIMARY KEY, cents bigint NOT NULL)`)
	sw.run(b, `INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 1000) n`)
	n := 0
	effect := func(tx pgx.Tx) error {
		n++
		_, err := tx.Exec(ctx, `UPDATE accounts SET cents = cents + 1 WHERE id = $1`, n%1000+1)
		return err
	}
	inboxes := map[*pgxpool.Pool]*inbox.Inbox[pgx.Tx]{}
	defer func() {
		for _, inbox := range inboxes {
			require.NoError(b, inbox.Close())
		}
	}()
	compareTx(b, sw, effect, func(pool *pgxpool.Pool) {
		if inboxes[pool] == nil {
			var err error
			inboxes[pool], err = inbox.NewPgx(ctx, pool, inbox.Config{Tables: sql.Config{Schema: sw.schema}})
			require.NoError(b, err)
		}
		seen, err := inboxes[pool].Once(ctx, "bench.ledger", bus.NewID(), func(_ context.Context, tx pgx.Tx) error { return effect(tx) })
		require.NoError(b, err)
		require.False(b, seen)
	})
}

// outboxBus returns a bus with an outbox whose relay does not run.
func outboxBus(b *testing.B, o driver.Outbox) *bus.Bus {
	bs, err := bus.New(nowhere{}, bus.Config{Service: "bench", Outbox: o})
	require.NoError(b, err)
	return bs
}

// nowhere is a transport that is not used.
type nowhere struct{ driver.Transport }

func (nowhere) Capabilities() driver.Capabilities { return driver.Capabilities{Durable: true} }
