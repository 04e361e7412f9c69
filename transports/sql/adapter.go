package sql

import (
	stdsql "database/sql"
	"errors"
	"fmt"

	wsql "github.com/ThreeDotsLabs/watermill-sql/v3/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/internal/queue"
)

// A SchemaAdapter lets a watermill-sql publisher insert into leat's tables, in the user's own
// transaction: the messages are published when it commits, and discarded when it rolls back.
//
//	adapter, err := sql.NewSchemaAdapter(sql.Config{Dialect: sql.Postgres})
//	publisher, err := wsql.NewPublisher(tx, wsql.PublisherConfig{SchemaAdapter: adapter}, nil)
//	err = publisher.Publish("order.paid.v1", msg)
//	err = tx.Commit()
//
// It works with every driver of its dialect. A message that no group subscribes to is dropped without
// an error. At isolation levels above READ COMMITTED, the groups are those that the transaction sees.
// The adapter can't subscribe; use a transport for that. It does not know the version of the tables, so
// it writes headers in the form that every release reads, which is not JSON; ForVersion changes that.
//
// A SchemaAdapter is immutable and may be used concurrently.
type SchemaAdapter struct{ statements *database.Statements }

var _ wsql.SchemaAdapter = SchemaAdapter{}

// NewSchemaAdapter returns an adapter for the tables that the configuration names. The tables must
// exist; see [Migrate]. It returns an error if the configuration is invalid.
func NewSchemaAdapter(cfg Config) (SchemaAdapter, error) {
	s, err := database.NewStatements(cfg)
	if err != nil {
		return SchemaAdapter{}, fmt.Errorf("sql: %w", err)
	}
	return SchemaAdapter{s}, nil
}

// ForVersion returns an adapter for tables of a version that [MigrationStatus] has returned. It writes headers as JSON if
// that version supports it.
func (a SchemaAdapter) ForVersion(version int) SchemaAdapter {
	return SchemaAdapter{a.statements.ForVersion(version)}
}

var (
	errNoMessages  = errors.New("no messages")
	errNoConsuming = errors.New("this adapter publishes only; consume by a transport's Subscribe")
)

// InsertQuery returns the statement that inserts messages for every group that subscribes to the topic.
func (a SchemaAdapter) InsertQuery(topic string, msgs message.Messages) (wsql.Query, error) {
	if err := driver.ValidateTopic(topic); err != nil {
		return wsql.Query{}, fmt.Errorf("sql: %w", err)
	}
	if len(msgs) == 0 {
		return wsql.Query{}, fmt.Errorf("sql: publish %s: %w", topic, errNoMessages)
	}
	if len(msgs) > queue.MaxInsert {
		return wsql.Query{}, fmt.Errorf("sql: publish %s: %d messages; publish at most %d at once", topic, len(msgs), queue.MaxInsert)
	}
	for _, msg := range msgs {
		if err := driver.RefusePrivate(msg); err != nil {
			return wsql.Query{}, fmt.Errorf("sql: publish %s: %w", topic, err)
		}
	}
	query, args, err := queue.InsertQuery(a.statements, topic, msgs)
	if err != nil {
		return wsql.Query{}, fmt.Errorf("sql: publish %s: %w", topic, err)
	}
	return wsql.Query{Query: query, Args: args}, nil
}

// SelectQuery returns a query that fails, because the adapter can't subscribe.
func (a SchemaAdapter) SelectQuery(string, string, wsql.OffsetsAdapter) wsql.Query {
	return wsql.Query{Query: "SELECT leat_cannot_be_consumed_by_a_watermill_sql_subscriber"}
}

// UnmarshalMessage returns an error, because the adapter can't subscribe.
func (a SchemaAdapter) UnmarshalMessage(wsql.Scanner) (wsql.Row, error) {
	return wsql.Row{}, fmt.Errorf("sql: %w", errNoConsuming)
}

// SchemaInitializingQueries returns none: [Migrate] creates the tables, once for all topics.
func (a SchemaAdapter) SchemaInitializingQueries(string) []wsql.Query { return nil }

// SubscribeIsolationLevel returns the default; the adapter does not subscribe.
func (a SchemaAdapter) SubscribeIsolationLevel() stdsql.IsolationLevel { return stdsql.LevelDefault }
