package outbox_test

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// outbox opens an instance of the system's outbox, closed at the end of the test.
func (s system) outbox(t testing.TB, cfg outbox.Config, options ...string) *outbox.Outbox {
	raw := s.URL
	for i := 0; i < len(options); i += 2 {
		raw = testenv.WithOption(t, raw, options[i], options[i+1])
	}
	u, err := url.Parse(raw)
	require.NoError(t, err)
	cfg.Service = "shop"
	o, err := outbox.Open(sqltest.Context(t), u, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), sqltest.Patience)
		defer cancel()
		require.NoError(t, o.Close(ctx))
	})
	return o
}

// A far is the transport of an outbox's bus. It records messages in order, and fails as fail says.
type far struct {
	mu   sync.Mutex
	got  []*message.Message
	fail func(msgs []*message.Message) error // nil means never
}

func (f *far) publish(_ context.Context, topic string, msgs ...*message.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, msg := range msgs {
		if driver.TopicOf(msg) != topic {
			return fmt.Errorf("%s came as %s", driver.TopicOf(msg), topic)
		}
	}
	if f.fail != nil {
		if err := f.fail(msgs); err != nil {
			return err
		}
	}
	f.got = append(f.got, msgs...)
	return nil
}

// ids returns the ids of the published messages, each once, in the order of the first publishes.
func (f *far) ids() (ids []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[string]bool{}
	for _, msg := range f.got {
		if id := driver.MessageID(msg); !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

func (f *far) await(t testing.TB, n int) []string {
	t.Helper()
	require.Eventually(t, func() bool { return len(f.ids()) >= n }, sqltest.Patience, 2*time.Millisecond, "only %d of %d came", len(f.ids()), n)
	return f.ids()
}

// relay runs until the test ends or stop is called.
func relay(t testing.TB, o driver.Outbox, f *far) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- o.Relay(ctx, f.publish) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	t.Cleanup(stop)
	return stop
}

// inTx publishes messages in a new transaction, and commits.
func inTx(t testing.TB, db *stdsql.DB, p driver.TxPublisher, msgs ...*message.Message) {
	t.Helper()
	testenv.Insist(t, func() error {
		tx, err := published(sqltest.Context(t), db, p, msgs...)
		if err != nil {
			return err
		}
		return tx.Commit()
	})
}

// published returns a new transaction in which it has published messages.
func published(ctx context.Context, db *stdsql.DB, p driver.TxPublisher, msgs ...*message.Message) (*stdsql.Tx, error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, msg := range msgs {
		if err := p.PublishTx(ctx, tx, driver.TopicOf(msg), msg); err != nil {
			return nil, errors.Join(err, tx.Rollback())
		}
	}
	return tx, nil
}

func keyed(topic, key string, n int) *message.Message {
	msg := sqltest.NewMessage(topic, fmt.Sprintf("%s-%04d", key, n))
	msg.Metadata[driver.HeaderPartitionKey] = key
	return msg
}

func TestRelay_publishesCommittedMessagesOnly(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		o, db, f := s.outbox(t, outbox.Config{}), s.Service(t), &far{}
		relay(t, o, f)
		var want []string
		for i := range 30 {
			msg := sqltest.NewMessage("order.paid.v1", fmt.Sprintf("m-%02d", i))
			msg.Metadata[driver.HeaderTraceParent] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
			if i%3 > 0 {
				inTx(t, db, o, msg)
				want = append(want, msg.UUID)
				continue
			}
			tx := sqltest.Begin(t, db, stdsql.LevelDefault)
			_ = o.PublishTx(sqltest.Context(t), tx, "order.paid.v1", msg)
			require.NoError(t, tx.Rollback())
		}
		require.ElementsMatch(t, want, f.await(t, len(want)))
		f.mu.Lock()
		first := f.got[0]
		f.mu.Unlock()
		require.Equal(t, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", first.Metadata[driver.HeaderTraceParent])
		require.Eventually(t, func() bool {
			stats, err := o.Stats(sqltest.Context(t))
			require.NoError(t, err)
			return stats == driver.OutboxStats{}
		}, sqltest.Patience, 5*time.Millisecond)
	})
}

// TestRelay_manyKeepTheOrderByKey checks the order by key with several topics per key, competing relays, and a transport that
// refuses some messages, accepts a part of a batch, and is sometimes unreachable.
func TestRelay_manyKeepTheOrderByKey(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db, f := s.Service(t), &far{}
		f.fail = func(msgs []*message.Message) error {
			switch rand.IntN(12) {
			case 0:
				return errors.New("refused")
			case 1:
				return fmt.Errorf("away: %w", context.DeadlineExceeded)
			case 2:
				f.got = append(f.got, msgs[:len(msgs)/2]...) // accepted, but the confirmation is lost
				return errors.New("connection lost")
			case 3:
				f.got = append(f.got, msgs[:len(msgs)/2]...)
				return &driver.PublishError{Failed: msgs[len(msgs)/2:], Err: errors.New("connection lost")}
			}
			return nil
		}
		cfg := outbox.Config{Batch: 16, Retry: bus.RetryPolicy{Delays: slices.Repeat([]time.Duration{5 * time.Millisecond}, 50)}}
		outboxes := []*outbox.Outbox{s.outbox(t, cfg), s.outbox(t, cfg), s.outbox(t, cfg)}
		const keys, each = 6, 24
		want := map[string][]string{}
		var wg sync.WaitGroup
		for k := range keys {
			key := fmt.Sprintf("key-%d", k)
			var msgs []*message.Message
			for n := range each {
				topic := []string{"order.placed.v1", "order.paid.v1", "order.paid.v1"}[n%3]
				msgs = append(msgs, keyed(topic, key, n))
				want[key] = append(want[key], msgs[n].UUID)
			}
			wg.Go(func() {
				for n := 0; n < each; n += 4 {
					inTx(t, db, outboxes[k%3], msgs[n:n+4]...)
				}
			})
		}
		for _, o := range outboxes {
			relay(t, o, f)
		}
		wg.Wait()
		got := map[string][]string{}
		for _, id := range f.await(t, keys*each) {
			got[id[:5]] = append(got[id[:5]], id)
		}
		require.Equal(t, want, got)
	})
}

func TestRelay_poisonsRefusedMessages(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db, f := s.Service(t), &far{}
		f.fail = func(msgs []*message.Message) error {
			if slices.ContainsFunc(msgs, func(m *message.Message) bool { return m.UUID == "a-0001" }) {
				return errors.New("too large for the broker")
			}
			return nil
		}
		o := s.outbox(t, outbox.Config{Retry: bus.RetryPolicy{Delays: []time.Duration{5 * time.Millisecond, 5 * time.Millisecond}}})
		for n := range 4 {
			inTx(t, db, o, keyed("order.paid.v1", "a", n), keyed("order.paid.v1", "b", n), keyed("order.paid.v1", "", n))
		}
		relay(t, o, f)
		ids := f.await(t, 11)
		a := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id[0] != 'a' })
		require.Equal(t, []string{"a-0000", "a-0002", "a-0003"}, a)

		queue := s.Start(t).PoisonQueue("shop.outbox") // as for the command line
		list, err := queue.List(sqltest.Context(t), "", 10)
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, "a-0001", driver.MessageID(list[0].Message))
		require.Equal(t, "too large for the broker", list[0].Fault.Text)
		require.Equal(t, 3, list[0].Fault.Attempts)
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		_, err = queue.Replay(sqltest.Context(t), list[0].ID)
		require.NoError(t, err)
		require.Contains(t, f.await(t, 12), "a-0001")
	})
}

// TestRelay_staysWithinItsBytes checks the limit of bytes with and without keys.
func TestRelay_staysWithinItsBytes(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db, f, largest := s.Service(t), &far{}, 0
		f.fail = func(msgs []*message.Message) error {
			largest = max(largest, len(msgs))
			return nil
		}
		tables := s.Config
		tables.PrefetchBytes = 2500
		o, err := outbox.New(sqltest.Context(t), db, outbox.Config{Service: "shop", Tables: tables})
		require.NoError(t, err)
		defer func() { require.NoError(t, o.Close(context.Background())) }()
		for i := range 100 {
			msg := keyed("order.paid.v1", []string{"a", "b", ""}[i%3], i)
			msg.Payload = make([]byte, 1000)
			inTx(t, db, o, msg)
		}
		relay(t, o, f)
		f.await(t, 100)
		f.mu.Lock()
		defer f.mu.Unlock()
		require.LessOrEqual(t, largest, 6, "three of the lanes, and three without a key")
		require.Greater(t, largest, 1)
	})
}

func TestRelay_countsNoTryWhileTheTransportIsUnreachable(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		db, f := s.Service(t), &far{}
		tries := 0
		f.fail = func([]*message.Message) error {
			tries++
			return fmt.Errorf("no broker: %w", context.DeadlineExceeded)
		}
		o := s.outbox(t, outbox.Config{Retry: bus.RetryPolicy{Delays: []time.Duration{time.Millisecond}}})
		inTx(t, db, o, keyed("order.paid.v1", "a", 0), keyed("order.paid.v1", "", 0))
		relay(t, o, f)
		require.Eventually(t, func() bool { return o.Problem() != nil }, sqltest.Patience, time.Millisecond)
		require.ErrorContains(t, o.Problem(), "no broker")
		require.Eventually(t, func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			if tries > 5 {
				f.fail = nil
			}
			return f.fail == nil
		}, sqltest.Patience, time.Millisecond)
		f.await(t, 2)
		require.Eventually(t, func() bool { return o.Problem() == nil }, sqltest.Patience, time.Millisecond)
		n, err := o.PoisonQueue().Len(sqltest.Context(t))
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// TestInTx_onABus publishes with a bus whose transport is not SQL.
func TestInTx_onABus(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := memory.New(memory.Config{})
		feed, err := transport.Subscribe(sqltest.Context(t), sqltest.Subscription("shop.ledger", 1, "order.>"))
		require.NoError(t, err)
		b, err := bus.New(transport, bus.Config{Service: "shop", Outbox: s.outbox(t, outbox.Config{})})
		require.NoError(t, err)
		db, ctx := s.Service(t), sqltest.Context(t)
		running, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- b.Run(running) }()
		<-b.Running()

		parent := &driver.Delivery{Message: sqltest.NewMessage("order.placed.v1", "cause")}
		parent.Message.Metadata[driver.HeaderTraceParent] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		tx := sqltest.Begin(t, db, stdsql.LevelDefault)
		require.NoError(t, b.InTx(tx).PublishAll((&bus.Delivery{Delivery: *parent}).NewContext(ctx), []bus.Event{sqltest.Paid{OrderID: "o-1"}, sqltest.Paid{OrderID: "o-2"}}))
		require.NoError(t, tx.Commit())
		for _, want := range []string{"o-1", "o-2"} {
			d := sqltest.Next(t, feed, sqltest.Patience)
			require.JSONEq(t, `{"OrderID":"`+want+`"}`, string(d.Message.Payload))
			require.Equal(t, want, driver.PartitionKey(d.Message))
			require.Contains(t, d.Message.Metadata[driver.HeaderTraceParent], "0af7651916cd43dd8448eb211c80319c")
			require.Equal(t, "cause", d.Message.Metadata[driver.HeaderCausationID])
			require.NoError(t, d.Settler.Ack())
		}
		require.NoError(t, b.Idle(ctx))
		require.EqualValues(t, 2, b.Stats().Published)
		health := b.Health()
		require.Equal(t, []bus.Health{{Group: "shop.outbox", State: bus.Running}}, health)
		stop()
		require.NoError(t, <-ended)
		require.NoError(t, b.Close(ctx))
	})
}

// TestRelay_postgresIsRestarted restarts PostgreSQL during transactions of which 30 % roll back. All committed messages must be
// relayed, and no others.
func TestRelay_postgresIsRestarted(t *testing.T) {
	t.Parallel()
	server := sqltest.NewPrivatePostgres(t)
	s := system{server.System()}
	s.Config.Dialect = sql.Postgres
	server.Run(t, `CREATE TABLE orders (id text PRIMARY KEY)`)
	f := &far{}
	first, second := s.outbox(t, outbox.Config{}, "lease", "1s"), s.outbox(t, outbox.Config{}, "lease", "1s")
	relay(t, first, f)
	relay(t, second, f)
	db, ctx := s.Service(t), sqltest.Context(t)
	writing, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := 0; writing.Err() == nil; n++ {
				_ = orderInTx(ctx, db, first, keyed("order.paid.v1", fmt.Sprintf("w%d", w), n), rand.IntN(10) < 3)
				sqltest.Pace(ctx)
			}
		})
	}
	for range 3 {
		before := len(f.ids())
		require.Eventually(t, func() bool { return len(f.ids()) > before+50 }, sqltest.Patience, 5*time.Millisecond)
		server.Stop(t, syscall.SIGQUIT)
		server.Start(t)
	}
	stop()
	wg.Wait()
	var want []string
	testenv.Insist(t, func() (err error) { // the pool may still have connections to the server that was stopped
		want, err = orderIDs(ctx, db)
		return err
	})
	f.await(t, len(want))
	require.Eventually(t, func() bool {
		stats, err := first.Stats(ctx)
		return err == nil && stats.Pending == 0
	}, sqltest.Patience, 5*time.Millisecond)
	got := f.ids()
	require.ElementsMatch(t, want, got)
	last := map[string]string{}
	for _, id := range got {
		require.Less(t, last[id[:2]], id, "the order of a key")
		last[id[:2]] = id
	}
}

func orderIDs(ctx context.Context, db *stdsql.DB) (ids []string, err error) {
	rows, err := db.QueryContext(ctx, `SELECT id FROM orders`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

func orderInTx(ctx context.Context, db *stdsql.DB, p driver.TxPublisher, msg *message.Message, undo bool) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `INSERT INTO orders VALUES ($1)`, msg.UUID); err != nil {
		return err
	}
	if err := p.PublishTx(ctx, tx, driver.TopicOf(msg), msg); err != nil || undo {
		return err
	}
	return tx.Commit()
}
