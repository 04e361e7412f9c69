package sql

import (
	stdsql "database/sql"
	"errors"
	"fmt"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// SchemaAdapter lets a watermill-sql publisher insert into leat's tables, in the user's own
// transaction: the messages are published when it commits, and never were when it rolls back.
//
//	adapter, err := sql.NewSchemaAdapter(sql.Config{Dialect: sql.Postgres})
//	publisher, err := wsql.NewPublisher(tx, wsql.PublisherConfig{SchemaAdapter: adapter}, nil)
//	err = publisher.Publish("order.paid.v1", msg)
//	err = tx.Commit()
//
// It works with every driver of its dialect. A message that no group wants is not stored, and
// nothing says so. At isolation levels above READ COMMITTED, the groups are those that the
// transaction sees. It is for publishing only: a transport consumes. It does not know the version of the tables, so
// it writes headers in the form that every release reads, which is not JSON.
type SchemaAdapter struct{ statements *statements }

var _ wsql.SchemaAdapter = SchemaAdapter{}

// NewSchemaAdapter makes an adapter for the tables that the configuration names. The tables must be
// there; see [Migrate].
func NewSchemaAdapter(cfg Config) (SchemaAdapter, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return SchemaAdapter{}, fmt.Errorf("sql: %w", err)
	}
	s, err := newStatements(cfg)
	if err != nil {
		return SchemaAdapter{}, fmt.Errorf("sql: %w", err)
	}
	return SchemaAdapter{s}, nil
}

var (
	errNoMessages  = errors.New("no messages")
	errNoConsuming = errors.New("this adapter publishes only; consume by a transport's Subscribe")
)

// InsertQuery returns the insert of messages for every group that wants the topic.
func (a SchemaAdapter) InsertQuery(topic string, msgs message.Messages) (wsql.Query, error) {
	if err := driver.ValidateTopic(topic); err != nil {
		return wsql.Query{}, fmt.Errorf("sql: %w", err)
	}
	if len(msgs) == 0 {
		return wsql.Query{}, fmt.Errorf("sql: publish %s: %w", topic, errNoMessages)
	}
	if len(msgs) > maxInsert {
		return wsql.Query{}, fmt.Errorf("sql: publish %s: %d messages; publish at most %d at once", topic, len(msgs), maxInsert)
	}
	for _, msg := range msgs {
		if err := driver.RefusePrivate(msg); err != nil {
			return wsql.Query{}, fmt.Errorf("sql: publish %s: %w", topic, err)
		}
	}
	rows, err := a.statements.publications(msgs)
	if err != nil {
		return wsql.Query{}, fmt.Errorf("sql: publish %s: %w", topic, err)
	}
	query, args := a.statements.insert(topic, rows, a.statements.wanted(topic))
	return wsql.Query{Query: query, Args: args}, nil
}

// SelectQuery returns a query that fails: the adapter is for publishing.
func (a SchemaAdapter) SelectQuery(string, string, wsql.OffsetsAdapter) wsql.Query {
	return wsql.Query{Query: "SELECT leat_cannot_be_consumed_by_a_watermill_sql_subscriber"}
}

// UnmarshalMessage fails: the adapter is for publishing.
func (a SchemaAdapter) UnmarshalMessage(wsql.Scanner) (wsql.Row, error) {
	return wsql.Row{}, fmt.Errorf("sql: %w", errNoConsuming)
}

// SchemaInitializingQueries returns none: [Migrate] makes the tables, once for all topics.
func (a SchemaAdapter) SchemaInitializingQueries(string) []wsql.Query { return nil }

// SubscribeIsolationLevel returns the default; the adapter does not subscribe.
func (a SchemaAdapter) SubscribeIsolationLevel() stdsql.IsolationLevel { return stdsql.LevelDefault }
