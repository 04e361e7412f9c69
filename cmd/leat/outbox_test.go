package main

import (
	"context"
	stdsql "database/sql"
	"log/slog"
	"net/url"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	rabbit "github.com/rabbitmq/amqp091-go"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/outbox"
)

// TestOutbox runs the commands on a service with an outbox, one of whose messages RabbitMQ refuses.
func TestOutbox(t *testing.T) {
	for name, database := range map[string]func(*testing.T) string{"postgres": onPostgres, "mysql": onMySQL, "sqlite": onSQLite} {
		t.Run(name, func(t *testing.T) {
			at, broker := database(t), testenv.RabbitMQVhost(t) // whose doctor sees no other test's groups
			testscript.Run(t, testscript.Params{
				Dir: "testdata/outbox",
				Setup: func(e *testscript.Env) error {
					s := sell(t, e.Defer, testenv.WithOption(t, broker, "exchange", unique()), testenv.WithOption(t, at, "prefix", unique()[len("leat_"):]))
					e.Setenv("LEAT_URL", s.bus)
					e.Setenv("LEAT_OUTBOX_URL", s.tables)
					e.Setenv("LEAT_INBOX_URL", s.tables)
					e.Setenv("SVC", s.name)
					e.Values["shop"] = s
					return setup(e)
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"mend":    func(ts *testscript.TestScript, _ bool, _ []string) { ts.Value("shop").(*shop).mend() },
					"relayed": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Value("shop").(*shop).relayed(0) },
					"commit": func(ts *testscript.TestScript, _ bool, args []string) {
						ts.Value("shop").(*shop).commit(args[0])
					},
					"shut": func(ts *testscript.TestScript, _ bool, _ []string) { ts.Value("shop").(*shop).shut() },
				},
			})
		})
	}
}

// shop is a service that publishes in its transactions.
type shop struct {
	*testing.T
	name, bus, tables string
	b                 *bus.Bus
	db                *stdsql.DB
	outbox            *outbox.Outbox
	ch                *rabbit.Channel
	shut              func()
}

// sell runs the service. Its order e-1 is poisoned, because it is also routed to a full queue.
func sell(t *testing.T, atEnd func(func()), at, tables string) *shop {
	s := &shop{T: t, name: unique(), bus: at, tables: tables}
	u, err := url.Parse(tables)
	require.NoError(t, err)
	s.outbox, err = outbox.Open(patience(t), u, outbox.Config{Service: s.name, Retry: bus.RetryPolicy{Delays: []time.Duration{}}})
	require.NoError(t, err)
	s.db, _, err = sql.OpenDB(u)
	require.NoError(t, err)
	s.b, err = bus.New(open(t, at), bus.Config{Service: s.name, Outbox: s.outbox, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NoError(t, s.b.Handle(handlers.Raw("ledger", []string{"order.>"}, func(context.Context, *message.Message) error { return nil })))
	ended := make(chan error, 1)
	go func() { ended <- s.b.Run(context.Background()) }()
	<-s.b.Running()
	s.shut = func() { require.NoError(t, s.b.Close(patience(t))) }
	full := s.fill()
	atEnd(func() {
		s.shut()
		require.NoError(t, <-ended)
		require.NoError(t, s.db.Close())
		testenv.Forget(t, at, s.b.GroupName("ledger"), full)
	})

	s.order("e-0", "order.refused.v1") // a refusal counts only if the transport takes other messages of the topic
	s.relayed(0)
	s.order("e-1", "order.refused.v1")
	s.order("e-2", "order.paid.v1")
	s.relayed(1)
	return s
}

// fill declares a queue that refuses all but the first message.
func (s *shop) fill() (queue string) {
	u, err := url.Parse(s.bus)
	require.NoError(s, err)
	exchange := u.Query().Get("exchange")
	u.RawQuery = ""
	conn, err := rabbit.Dial(u.String())
	require.NoError(s, err)
	s.Cleanup(func() { _ = conn.Close() })
	s.ch, err = conn.Channel()
	require.NoError(s, err)
	queue = s.name + ".full"
	_, err = s.ch.QueueDeclare(queue, true, false, false, false, rabbit.Table{"x-max-length": 1, "x-overflow": "reject-publish"})
	require.NoError(s, err)
	require.NoError(s, s.ch.QueueBind(queue, "order.refused.v1", exchange, false, nil))
	return queue
}

// mend deletes the full queue.
func (s *shop) mend() {
	_, err := s.ch.QueueDelete(s.name+".full", false, false, false)
	require.NoError(s, err)
}

// order commits a row with its event.
func (s *shop) order(id, topic string) {
	tx, err := s.db.BeginTx(patience(s.T), nil)
	require.NoError(s, err)
	require.NoError(s, s.b.InTx(tx).PublishMessages(patience(s.T), order(id, topic)))
	require.NoError(s, tx.Commit())
}

// commit places an order in an instance that ends before its relay has published the event.
func (s *shop) commit(id string) {
	u, err := url.Parse(s.tables)
	require.NoError(s, err)
	outbox, err := outbox.Open(patience(s.T), u, outbox.Config{Service: s.name})
	require.NoError(s, err)
	tx, err := s.db.BeginTx(patience(s.T), nil)
	require.NoError(s, err)
	require.NoError(s, outbox.PublishTx(patience(s.T), tx, "order.paid.v1", order(id, "order.paid.v1")))
	require.NoError(s, tx.Commit())
	require.NoError(s, outbox.Close(patience(s.T)))
}

func order(id, topic string) *message.Message {
	msg := message.NewMessage(id, []byte(`{"order":1}`))
	msg.Metadata = message.Metadata{driver.HeaderID: id, driver.HeaderType: topic, driver.HeaderSource: "shop"}
	return msg
}

// relayed waits until no message is pending, and that many are poisoned.
func (s *shop) relayed(aside int) {
	require.Eventually(s, func() bool {
		stats, err := s.b.OutboxStats(patience(s.T))
		require.NoError(s, err)
		n, err := s.outbox.PoisonQueue().Len(patience(s.T))
		return err == nil && stats.Pending == 0 && n == aside
	}, long, 5*time.Millisecond)
}
