package queue

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// TestSettle_releasesTheMessage: bodies of messages that are handled take no memory while the database is slow to delete them.
func TestSettle_releasesTheMessage(t *testing.T) {
	t.Parallel()
	s := newSettlements(nil, &consumer{}) // nobody writes its settlements
	settle := map[string]func(*Delivery) error{
		"acked":       (*Delivery).Ack,
		"redelivered": func(d *Delivery) error { return d.Redeliver(time.Second) },
		"given back":  func(d *Delivery) error { return d.GiveBack(0) },
	}
	var messages []weak.Pointer[message.Message]
	for name, f := range settle {
		d := &Delivery{settlements: s, ID: int64(len(messages) + 1)}
		d.Delivery.Message = message.NewMessage(name, make([]byte, 1000))
		d.Delivery.History = driver.History{Failures: 1}
		require.True(t, s.track(d))
		require.NoError(t, f(d))
		messages = append(messages, weak.Make(d.Delivery.Message))
	}
	runtime.GC()
	for _, m := range messages {
		require.Nil(t, m.Value(), "a settlement that waits keeps the message in memory")
	}
	require.Len(t, s.pending, len(settle))
	require.Equal(t, len(settle), s.out(), "they are in flight until that is written")
	for _, x := range s.pending {
		require.Equal(t, 1, x.d.Delivery.History.Failures, "what is written of a failure")
		s.drop(x.d)
	}
	require.Zero(t, s.out())
}

// TestSettle_errorsHaveOneShortLine: another program may have written an id of any length and any characters.
func TestSettle_errorsHaveOneShortLine(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	db, err := database.Connect(config.Source{URL: mustParse(t, "sqlite://"+t.TempDir()+"/test.db"), Config: sqlconfig.Config{Dialect: sqlconfig.SQLite}})
	require.NoError(t, err)
	transport, err := Open(ctx, db, sqlconfig.Config{Dialect: sqlconfig.SQLite})
	require.NoError(t, err)
	defer func() { require.NoError(t, transport.Close(ctx)) }()
	const topic = "order.paid.v1"
	receiver, err := transport.Subscribe(ctx, driver.Subscription{Group: "shop.ledger", Topics: []string{topic}, Concurrency: 1})
	require.NoError(t, err)
	require.NoError(t, transport.Publish(ctx, topic, message.NewMessage("m", nil)))
	_, err = db.Exec(ctx, transport.core.SQL(`UPDATE {messages} SET uuid = ?`), "first\nsecond"+strings.Repeat("x", 1<<20))
	require.NoError(t, err)
	d, err := receiver.Next(ctx)
	require.NoError(t, err)
	require.Greater(t, len(d.Message.UUID), 1<<20)
	stopped, stop := context.WithCancel(ctx)
	stop()
	poisoned := d.Settler.Poison(stopped, driver.Fault{Text: "test"})
	require.ErrorContains(t, poisoned, "poison message first second")
	require.NoError(t, d.Settler.Ack())
	for _, err := range []error{poisoned, d.Settler.Ack(), d.Settler.Poison(ctx, driver.Fault{Text: "test"})} {
		require.ErrorContains(t, err, "message first second")
		require.Less(t, len(err.Error()), 2*driver.MaxClassBytes)
		require.NotContains(t, err.Error(), "\n")
	}
}
