package bench_test

import (
	"bytes"
	"context"
	stdsql "database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/sql"
	_ "github.com/leatbus/leat/transports/sqlite"
)

// The floor is what the database does for a bare queue: one table, one index, no groups, no leases.
//
//	go test ./bench -run xxx -bench SQLDrain -benchtime 100000x
//	go test ./bench -run xxx -bench SQLPublish -benchtime 2s
//	go test ./bench -run SQLLatency -v

const sqlTopic = "order.paid.v1"

// sqlWorld is a PostgreSQL schema for one benchmark.
type sqlWorld struct {
	url, schema string
	pool        *pgxpool.Pool
}

func newSQLWorld(tb testing.TB) sqlWorld {
	w := sqlWorld{url: testenv.Postgres(tb), schema: fmt.Sprintf("leat_bench_%08x", rand.Uint32())}
	cfg, err := pgxpool.ParseConfig(w.url)
	require.NoError(tb, err)
	cfg.ConnConfig.RuntimeParams["search_path"] = w.schema
	cfg.MaxConns = 20
	w.pool, err = pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(tb, err)
	w.run(tb, "CREATE SCHEMA "+w.schema)
	tb.Cleanup(func() {
		w.run(tb, "DROP SCHEMA "+w.schema+" CASCADE")
		w.pool.Close()
	})
	return w
}

func (w sqlWorld) run(tb testing.TB, query string, args ...any) {
	tb.Helper()
	_, err := w.pool.Exec(context.Background(), query, args...)
	require.NoError(tb, err)
}

func (w sqlWorld) open(tb testing.TB) driver.Transport {
	u, err := url.Parse(w.url)
	require.NoError(tb, err)
	q := u.Query()
	q.Set("schema", w.schema)
	u.RawQuery = q.Encode()
	t, err := sql.Open(context.Background(), u)
	require.NoError(tb, err)
	return t
}

// bus runs one trivial handler in the standard stack.
func (w sqlWorld) bus(tb testing.TB, handle func(orderPaid)) *bus.Bus {
	b, err := bus.New(w.open(tb), bus.Config{Service: "bench", Stack: middleware.Standard(middleware.Config{})})
	require.NoError(tb, err)
	require.NoError(tb, b.Handle(handlers.Func("ledger", func(_ context.Context, e orderPaid) error {
		handle(e)
		return nil
	}, handlers.Concurrency(100))))
	tb.Cleanup(func() { require.NoError(tb, b.Close(context.Background())) })
	return b
}

func (w sqlWorld) floorTable(tb testing.TB) {
	w.run(tb, `CREATE TABLE raw_queue (id bigserial PRIMARY KEY, uuid text NOT NULL, headers bytea NOT NULL, payload bytea NOT NULL)`)
}

func orderMessages(tb testing.TB, n int) []*message.Message {
	encoder := bus.Encoder{Source: "bench"}
	msgs := make([]*message.Message, n)
	for i := range msgs {
		var err error
		msgs[i], err = encoder.Encode(context.Background(), newOrder(i))
		require.NoError(tb, err)
	}
	return msgs
}

// columns returns messages as arguments of the raw inserts.
func columns(msgs []*message.Message) (uuids []string, headers, payloads [][]byte) {
	for _, m := range msgs {
		h, _ := json.Marshal(m.Metadata)
		uuids, headers, payloads = append(uuids, m.UUID), append(headers, h), append(payloads, m.Payload)
	}
	return uuids, headers, payloads
}

func BenchmarkSQLDrain(b *testing.B) {
	b.Run("floor=select+delete of 100", func(b *testing.B) {
		w := newSQLWorld(b)
		w.floorTable(b)
		uuids, headers, payloads := columns(orderMessages(b, 1000))
		for n := 0; n < b.N; n += 1000 {
			w.run(b, `INSERT INTO raw_queue (uuid, headers, payload) SELECT * FROM unnest($1::text[], $2::bytea[], $3::bytea[])`, uuids, headers, payloads)
		}
		w.run(b, `VACUUM ANALYZE raw_queue`)
		b.ResetTimer()
		for n := 0; n < b.N; {
			n += w.floorBatch(b)
		}
		report(b)
	})
	b.Run("leat", func(b *testing.B) {
		w := newSQLWorld(b)
		var handled atomic.Int64
		done := make(chan struct{})
		bs := w.bus(b, func(orderPaid) {
			if int(handled.Add(1)) == b.N {
				close(done)
			}
		})
		w.fill(b, b.N)
		b.ResetTimer()
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- bs.Run(ctx) }()
		<-done
		report(b)
		b.StopTimer()
		stop()
		require.NoError(b, <-ended)
	})
	b.Run("watermill-sql", func(b *testing.B) {
		w := newSQLWorld(b)
		cfg, err := pgx.ParseConfig(w.url)
		require.NoError(b, err)
		cfg.RuntimeParams["search_path"] = w.schema
		db := stdlib.OpenDB(*cfg)
		defer func() { _ = db.Close() }()
		schema := wsql.DefaultPostgreSQLSchema{SubscribeBatchSize: 100, GeneratePayloadType: func(string) string { return "BYTEA" }}
		drainStock(b, db, schema)
	})
}

func drainStock(b *testing.B, db *stdsql.DB, schema wsql.DefaultPostgreSQLSchema) {
	sub, err := wsql.NewSubscriber(db, wsql.SubscriberConfig{
		SchemaAdapter: schema, OffsetsAdapter: wsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true, ConsumerGroup: "ledger",
	}, nil)
	require.NoError(b, err)
	require.NoError(b, sub.SubscribeInitialize("orders"))
	pub, err := wsql.NewPublisher(db, wsql.PublisherConfig{SchemaAdapter: schema}, nil)
	require.NoError(b, err)
	msgs := orderMessages(b, 1000)
	for n := 0; n < b.N; n += len(msgs) {
		require.NoError(b, pub.Publish("orders", msgs...))
	}
	b.ResetTimer()
	got, err := sub.Subscribe(context.Background(), "orders")
	require.NoError(b, err)
	for range b.N {
		(<-got).Ack()
	}
	report(b)
	b.StopTimer()
	go func() {
		for m := range got {
			m.Nack()
		}
	}()
	require.NoError(b, sub.Close())
}

// fill creates the group with n waiting messages.
func (w sqlWorld) fill(tb testing.TB, n int) {
	ctx := context.Background()
	t := w.open(tb)
	_, err := t.Subscribe(ctx, driver.Subscription{Group: "bench.ledger", Topics: []string{sqlTopic}, Concurrency: 1})
	require.NoError(tb, err)
	for rest := n; rest > 0; rest -= 1000 {
		require.NoError(tb, t.Publish(ctx, sqlTopic, orderMessages(tb, min(rest, 1000))...))
	}
	require.NoError(tb, t.Close(ctx))
	w.run(tb, "VACUUM ANALYZE "+w.schema+".leat_messages")
}

func (w sqlWorld) floorBatch(tb testing.TB) (n int) {
	ctx := context.Background()
	tx, err := w.pool.Begin(ctx)
	require.NoError(tb, err)
	rows, err := tx.Query(ctx, `SELECT id, uuid, headers, payload FROM raw_queue ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED`)
	require.NoError(tb, err)
	var ids []int64
	for rows.Next() {
		var id int64
		var uuid string
		var headers, payload []byte
		require.NoError(tb, rows.Scan(&id, &uuid, &headers, &payload))
		ids = append(ids, id)
	}
	require.NoError(tb, rows.Err())
	_, err = tx.Exec(ctx, `DELETE FROM raw_queue WHERE id = ANY($1)`, ids)
	require.NoError(tb, err)
	require.NoError(tb, tx.Commit(ctx))
	return len(ids)
}

func report(b *testing.B) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
	b.ReportMetric(0, "ns/op")
}

func BenchmarkSQLPublish(b *testing.B) {
	const goroutines = 8
	b.Run("one by one/floor", func(b *testing.B) {
		w := newSQLWorld(b)
		w.floorTable(b)
		together(b, goroutines, func() {
			m := orderMessages(b, 1)[0]
			h, _ := json.Marshal(m.Metadata)
			w.run(b, `INSERT INTO raw_queue (uuid, headers, payload) VALUES ($1, $2, $3)`, m.UUID, h, []byte(m.Payload))
		})
		report(b)
	})
	b.Run("one by one/leat", func(b *testing.B) {
		w := newSQLWorld(b)
		w.fill(b, 1)
		t := w.open(b)
		defer func() { require.NoError(b, t.Close(context.Background())) }()
		together(b, goroutines, func() {
			if err := t.Publish(context.Background(), sqlTopic, orderMessages(b, 1)...); err != nil {
				b.Error(err)
			}
		})
		report(b)
	})
	b.Run("slices of 100/floor", func(b *testing.B) {
		w := newSQLWorld(b)
		w.floorTable(b)
		b.ResetTimer()
		for n := 0; n < b.N; n += 100 {
			uuids, headers, payloads := columns(orderMessages(b, 100))
			w.run(b, `INSERT INTO raw_queue (uuid, headers, payload) SELECT * FROM unnest($1::text[], $2::bytea[], $3::bytea[])`, uuids, headers, payloads)
		}
		report(b)
	})
	b.Run("slices of 100/leat", func(b *testing.B) {
		w := newSQLWorld(b)
		w.fill(b, 1)
		t := w.open(b)
		defer func() { require.NoError(b, t.Close(context.Background())) }()
		b.ResetTimer()
		for n := 0; n < b.N; n += 100 {
			require.NoError(b, t.Publish(context.Background(), sqlTopic, orderMessages(b, 100)...))
		}
		report(b)
	})
}

// BenchmarkSQLFile measures the time from publish to handler with a SQLite file. Each publish waits for the disk.
func BenchmarkSQLFile(b *testing.B) {
	u := &url.URL{Scheme: "sqlite", Path: filepath.Join(b.TempDir(), "leat.db")}
	t, err := sql.Open(context.Background(), u)
	require.NoError(b, err)
	bs, err := bus.New(t, bus.Config{Service: "bench", Stack: middleware.Standard(middleware.Config{})})
	require.NoError(b, err)
	defer func() { require.NoError(b, bs.Close(context.Background())) }()
	var handled atomic.Int64
	done := make(chan struct{})
	require.NoError(b, bs.Handle(handlers.Func("ledger", func(context.Context, orderPaid) error {
		if int(handled.Add(1)) == b.N {
			close(done)
		}
		return nil
	})))
	go func() { _ = bs.Run(context.Background()) }()
	<-bs.Running()
	together(b, 64, func() {
		if err := bs.Publish(context.Background(), newOrder(1)); err != nil {
			b.Error(err)
		}
	})
	<-done
	report(b)
}

// BenchmarkSQLIdle measures the cost of groups without messages for the server. It reads the CPU time of the server's
// processes, so it needs one on this machine.
func BenchmarkSQLIdle(t *testing.B) {
	w := newSQLWorld(t)
	transport := w.open(t)
	defer func() { require.NoError(t, transport.Close(context.Background())) }()
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for g := range 20 {
		feed, err := transport.Subscribe(ctx, driver.Subscription{Group: fmt.Sprintf("bench.idle-%d", g), Topics: []string{sqlTopic}, Concurrency: 1})
		require.NoError(t, err)
		wg.Go(func() { _, _ = feed.Next(ctx) })
	}
	<-time.After(time.Second)
	name := "leat"
	before, began := w.serverCPU(t, name), time.Now()
	wg.Wait()
	share := float64(w.serverCPU(t, name)-before) / float64(time.Since(began))
	t.Logf("20 idle groups cost the server %.2f %% of a core", 100*share)
}

// serverCPU returns the CPU time of the application's server processes.
func (w sqlWorld) serverCPU(t testing.TB, application string) (total time.Duration) {
	rows, err := w.pool.Query(context.Background(), `SELECT pid FROM pg_stat_activity WHERE application_name = $1`, application)
	require.NoError(t, err)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(t, err)
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Skip("the server is not on this machine")
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, ticks := range fields[11:13] { // user and system time
			n, err := strconv.Atoi(ticks)
			require.NoError(t, err)
			total += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return total
}

// together calls f b.N times from n goroutines.
func together(b *testing.B, n int, f func()) {
	b.ResetTimer()
	var wg sync.WaitGroup
	for g := range n {
		wg.Go(func() {
			for i := g; i < b.N; i += n {
				f()
			}
		})
	}
	wg.Wait()
}

// BenchmarkSQLLatency measures the time from the start of the publish, and from its commit, to the handler at 100
// messages per second, compared with a bare queue in the database. The rounds alternate, so that the disk affects
// both. Then it does the same while a foreign transaction keeps an old snapshot.
func BenchmarkSQLLatency(t *testing.B) {
	w := newSQLWorld(t)
	handled := make(chan time.Time, 1)
	b := w.bus(t, func(orderPaid) { handled <- time.Now() })
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	<-b.Running()
	floor := w.floorLatency(t)
	leat := func(i int) (committed, arrived time.Time) {
		require.NoError(t, b.Publish(ctx, newOrder(i)))
		return time.Now(), <-handled
	}
	measure := func(name string) {
		var raw, ours latency
		for range 4 {
			raw.measure(100, floor)
			ours.measure(100, leat)
		}
		t.Logf("%s\n\tfloor %s\n\tleat  %s", name, raw, ours)
	}
	measure("quiet")
	tx, err := w.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	require.NoError(t, err)
	_, err = tx.Exec(ctx, `CREATE TABLE foreign_write (id int)`)
	require.NoError(t, err)
	measure("with a foreign transaction open")
	require.NoError(t, tx.Rollback(ctx))
	stop()
	require.NoError(t, <-ended)
}

// latency has the measured times: from the start of the publish, of the publish, and from the commit.
type latency struct{ all, publish, commit []time.Duration }

// measure sends n messages, one every 10 ms.
func (l *latency) measure(n int, send func(i int) (committed, arrived time.Time)) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		began := time.Now()
		committed, arrived := send(i)
		l.all = append(l.all, arrived.Sub(began))
		l.publish = append(l.publish, committed.Sub(began))
		l.commit = append(l.commit, max(arrived.Sub(committed), 0))
	}
}

func (l latency) String() string {
	p := func(all []time.Duration) string {
		slices.Sort(all)
		return fmt.Sprintf("%.2f/%.2f", all[len(all)/2].Seconds()*1000, all[len(all)*99/100].Seconds()*1000)
	}
	return fmt.Sprintf("p50/p99 ms: publish to handler %s, publish %s, commit to handler %s", p(l.all), p(l.publish), p(l.commit))
}

// floorLatency inserts and notifies in one commit, gets the notification on another connection, and deletes there.
func (w sqlWorld) floorLatency(t testing.TB) func(i int) (committed, arrived time.Time) {
	w.floorTable(t)
	ctx, cancel := context.WithCancel(context.Background())
	conn, err := pgx.ConnectConfig(ctx, w.pool.Config().ConnConfig)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "LISTEN "+w.schema) // a channel is the whole database's
	require.NoError(t, err)
	heard := make(chan time.Time, 1)
	var listening sync.WaitGroup
	listening.Go(func() {
		for {
			if _, err := conn.WaitForNotification(ctx); err != nil {
				return
			}
			_, err := conn.Exec(ctx, `WITH gone AS (DELETE FROM raw_queue WHERE id IN (SELECT id FROM raw_queue ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING payload)
				SELECT payload, set_config('synchronous_commit', 'off', true) FROM gone`)
			if err != nil {
				return
			}
			select {
			case heard <- time.Now():
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		listening.Wait()
		_ = conn.Close(context.Background())
	})
	return func(int) (committed, arrived time.Time) {
		m := orderMessages(t, 1)[0]
		h, _ := json.Marshal(m.Metadata)
		w.run(t, `WITH i AS (INSERT INTO raw_queue (uuid, headers, payload) VALUES ($1, $2, $3) RETURNING id) SELECT pg_notify($4, '') FROM i`,
			m.UUID, h, []byte(m.Payload), w.schema)
		return time.Now(), <-heard
	}
}
