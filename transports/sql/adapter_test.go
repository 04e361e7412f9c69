package sql_test

import (
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/sql"
	"github.com/leatbus/leat/transports/sql/internal/sqltest"
)

// publishInTx publishes with watermill-sql's publisher in a transaction.
func publishInTx(t testing.TB, tx *stdsql.Tx, cfg sql.Config, topic string, msgs ...*message.Message) {
	t.Helper()
	require.NoError(t, publishWithAdapter(t, tx, cfg, topic, msgs...))
}

func publishWithAdapter(t testing.TB, tx *stdsql.Tx, cfg sql.Config, topic string, msgs ...*message.Message) error {
	t.Helper()
	adapter, err := sql.NewSchemaAdapter(cfg)
	require.NoError(t, err)
	publisher, err := wsql.NewPublisher(tx, wsql.PublisherConfig{SchemaAdapter: adapter}, nil)
	require.NoError(t, err)
	return publisher.Publish(topic, msgs...)
}

// TestSchemaAdapter_publishesInTheUsersTransaction checks that the messages are committed and rolled back with the user's rows.
func TestSchemaAdapter_publishesInTheUsersTransaction(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		transport := s.Start(t)
		ctx := sqltest.Context(t)
		plain, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		all, err := transport.Subscribe(ctx, sqltest.Subscription("shop.mail", 1, "order.*.v1", "order.>"))
		require.NoError(t, err)
		db := s.DB(t)
		if s.Config.Dialect == sql.MySQL {
			db = s.stdPool(t) // with prepared statements, as in a user's program
		}
		for _, end := range []string{"rolled back", "committed"} {
			tx := sqltest.Begin(t, db, stdsql.LevelDefault)
			msg := sqltest.NewMessage("order.paid.v1", end)
			msg.Payload = []byte("\x00\xff" + end)
			publishInTx(t, tx, s.Config, "order.paid.v1", msg, sqltest.NewMessage("order.paid.v1", end+"/2"))
			if end == "committed" {
				require.NoError(t, tx.Commit())
			} else {
				require.NoError(t, tx.Rollback())
			}
		}
		for _, feed := range []driver.Receiver{plain, all} {
			for _, want := range []string{"committed", "committed/2"} {
				d := sqltest.Next(t, feed, sqltest.Patience)
				require.Equal(t, want, driver.MessageID(d.Message))
				require.Equal(t, "order.paid.v1", d.Topic)
				require.NoError(t, d.Settler.Ack())
			}
		}
	})
}

// TestClaim_oneConsumerKeepsTheOrderOfACommit checks that a claim sees all messages of a commit or none.
func TestClaim_oneConsumerKeepsTheOrderOfACommit(t *testing.T) {
	eachSystem(t, func(t *testing.T, s system) {
		if s.Config.Dialect == sql.SQLite {
			t.Skip("one connection writes at a time, and the user's would be in the way")
		}
		transport, ctx := s.Start(t, "poll", "1ms"), sqltest.Context(t)
		feed, err := transport.Subscribe(ctx, sqltest.Subscription("shop.ledger", 1, "order.paid.v1"))
		require.NoError(t, err)
		const rounds, each = 200, 10
		db := s.DB(t)
		got := make(chan string, rounds*each)
		go func() {
			defer close(got)
			for range rounds * each {
				d, err := feed.Next(ctx)
				if err != nil {
					t.Error(err)
					return
				}
				got <- d.Message.UUID
				_ = d.Settler.Ack()
			}
		}()
		for round := range rounds {
			msgs := newMessages(each)
			for i, msg := range msgs {
				msg.UUID = fmt.Sprintf("%03d/%d", round, i)
			}
			testenv.Insist(t, func() error {
				tx := sqltest.Begin(t, db, stdsql.LevelDefault)
				if err := publishWithAdapter(t, tx, s.Config, "order.paid.v1", msgs...); err != nil {
					return errors.Join(err, tx.Rollback())
				}
				return tx.Commit()
			})
		}
		for round := range rounds {
			for i := range each {
				require.Equal(t, fmt.Sprintf("%03d/%d", round, i), <-got)
			}
		}
	})
}

func TestSchemaAdapter_rejectsUnsupportedCalls(t *testing.T) {
	adapter, err := sql.NewSchemaAdapter(sql.Config{})
	require.NoError(t, err)
	_, err = adapter.InsertQuery("order.paid.v1", nil)
	require.ErrorContains(t, err, "no messages")
	_, err = adapter.InsertQuery("order..v1", message.Messages{sqltest.NewMessage("a", "m")})
	require.ErrorContains(t, err, "empty segment")
	_, err = adapter.InsertQuery("order.paid.v1", make(message.Messages, 1000))
	require.ErrorContains(t, err, "at most")
	_, err = adapter.UnmarshalMessage(nil)
	require.ErrorContains(t, err, "publishes only")
	require.Empty(t, adapter.SchemaInitializingQueries("order.paid.v1"))
	_, err = sql.NewSchemaAdapter(sql.Config{Prefix: `x"; DROP TABLE users; --`})
	require.ErrorContains(t, err, "prefix")
	_, err = sql.NewSchemaAdapter(sql.Config{Dialect: "oracle"})
	require.ErrorContains(t, err, "oracle")

	query, err := adapter.InsertQuery(strings.Repeat("a.", 100)+"b", message.Messages{sqltest.NewMessage("a", "m")})
	require.NoError(t, err)
	require.Less(t, len(query.Args), 120)
}

func TestSchemaAdapter_refusesPrivateHeaders(t *testing.T) {
	adapter, err := sql.NewSchemaAdapter(sql.Config{})
	require.NoError(t, err)
	for _, name := range []string{driver.HeaderFaultFailures, "leat_anything"} {
		msg := sqltest.NewMessage("order.paid.v1", "m")
		msg.Metadata[name] = "1"
		_, err = adapter.InsertQuery("order.paid.v1", message.Messages{sqltest.NewMessage("order.paid.v1", "good"), msg})
		require.ErrorContains(t, err, `header "`+name+`"`)
		require.ErrorContains(t, err, "delete it")
	}
}

func TestSchemaAdapter_writesHeadersInTheFormOfTheTables(t *testing.T) {
	adapter, err := sql.NewSchemaAdapter(sql.Config{})
	require.NoError(t, err)
	msg := sqltest.NewMessage("order.paid.v1", "m")
	msg.Metadata = message.Metadata{"colour": "red"}
	for version, want := range map[int]string{0: "colour=red\n", 3: "colour=red\n", 4: `{"colour":"red"}`} {
		query, err := adapter.ForVersion(version).InsertQuery("order.paid.v1", message.Messages{msg})
		require.NoError(t, err)
		require.Contains(t, query.Args, []byte(want), "version %d", version)
	}
}
