package queue

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// clockless is a pool that fails the test if a statement has a time of this process as an argument.
type clockless struct {
	database.Pool
	t *testing.T
}

func (d clockless) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	d.check(query, args)
	return d.Pool.Exec(ctx, query, args...)
}

func (d clockless) Query(ctx context.Context, query string, args ...any) (database.Rows, error) {
	d.check(query, args)
	return d.Pool.Query(ctx, query, args...)
}

func (d clockless) InTx(ctx context.Context, f func(database.Executor) error) error {
	return d.Pool.InTx(ctx, func(tx database.Executor) error { return f(clocklessTx{tx, d}) })
}

type clocklessTx struct {
	database.Executor
	db clockless
}

func (tx clocklessTx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	tx.db.check(query, args)
	return tx.Executor.Exec(ctx, query, args...)
}

func (tx clocklessTx) Query(ctx context.Context, query string, args ...any) (database.Rows, error) {
	tx.db.check(query, args)
	return tx.Executor.Query(ctx, query, args...)
}

func (d clockless) check(query string, args []any) {
	for _, arg := range args {
		if isNow(arg) {
			d.t.Errorf("a time of this process, %v, goes into %s", arg, query)
		}
	}
}

// isNow reports whether a number is about the current time, in any unit.
func isNow(arg any) bool {
	n, ok := arg.(int64)
	if _, isTime := arg.(time.Time); isTime || !ok {
		return isTime
	}
	for _, unit := range []time.Duration{time.Nanosecond, time.Microsecond, time.Millisecond, time.Second} {
		if math.Abs(float64(n)-float64(time.Now().UnixNano())/float64(unit)) < float64(24*time.Hour/unit) {
			return true
		}
	}
	return false
}

// TestClock_onlyTheDatabasesIsWritten checks that all times are by the database's clock, whatever a transport does.
func TestClock_onlyTheDatabasesIsWritten(t *testing.T) {
	require.True(t, isNow(time.Now().UnixMicro()))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	file := config.Source{URL: mustParse(t, "sqlite://"+t.TempDir()+"/test.db"), Config: sqlconfig.Config{Dialect: sqlconfig.SQLite}}
	db, err := database.Connect(file)
	require.NoError(t, err)
	cfg := sqlconfig.Config{Dialect: sqlconfig.SQLite, KeepHandled: time.Second, KeepPoisoned: time.Hour}
	transport, err := Open(ctx, clockless{db, t}, cfg)
	require.NoError(t, err)
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey, driver.OrderedStrictly} {
		topic := "order.paid.v" + string(rune('1'+int(order)))
		receiver, err := transport.Subscribe(ctx, driver.Subscription{Group: topic, Topics: []string{topic, "order.>"}, Order: order, Concurrency: 1, Park: order != driver.Unordered})
		require.NoError(t, err)
		msg := message.NewMessage("m", nil)
		msg.Metadata = message.Metadata{
			driver.HeaderDeliverAt:    time.Now().Add(30 * time.Millisecond).Format(time.RFC3339Nano),
			driver.HeaderPartitionKey: "key",
		}
		require.NoError(t, transport.Publish(ctx, topic, msg))
		for _, settle := range []func(*driver.Delivery) error{
			func(d *driver.Delivery) error { return d.Settler.Redeliver(20 * time.Millisecond) },
			func(d *driver.Delivery) error { return d.Settler.GiveBack(20 * time.Millisecond) },
			func(d *driver.Delivery) error { return d.Settler.GiveBack(0) },
			func(d *driver.Delivery) error { return d.Settler.Poison(ctx, driver.Fault{Text: "test"}) },
		} {
			d, err := receiver.Next(ctx)
			require.NoError(t, err)
			require.NoError(t, settle(d))
		}
		queue := transport.PoisonQueue(topic)
		list, err := queue.List(ctx, "", 10)
		require.NoError(t, err)
		require.Len(t, list, 1)
		n, err := queue.Replay(ctx, list[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		d, err := receiver.Next(ctx)
		require.NoError(t, err)
		require.NoError(t, d.Settler.Ack())
		require.NoError(t, receiver.Close(ctx))
	}
	require.NoError(t, retention{transport.core}.clean(ctx, []group{{id: 1}}))
	other, err := database.Connect(file)
	require.NoError(t, err)
	cfg.Lease = time.Second
	quick, err := Open(ctx, clockless{other, t}, cfg)
	require.NoError(t, err)
	receiver, err := quick.Subscribe(ctx, driver.Subscription{Group: "lease", Topics: []string{"order.>"}, Concurrency: 1})
	require.NoError(t, err)
	first, renewed := int64(0), int64(0)
	for renewed == first { // until the lease is renewed
		require.True(t, backoff.Sleep(ctx, 10*time.Millisecond))
		renewed, _, err = database.Number(ctx, db, transport.core.SQL(`SELECT expires_at FROM {consumers}`))
		require.NoError(t, err)
		if first == 0 {
			first = renewed
		}
	}
	require.NoError(t, receiver.Close(ctx))
	require.NoError(t, quick.Close(ctx))
	require.NoError(t, transport.Close(ctx))
}
