package driver

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// TxPublisher writes messages in a transaction of the caller's. A [Transport] that is one publishes by
// it, and needs no [Outbox].
type TxPublisher interface {
	// PublishTx writes messages of one topic in the transaction tx: they are published when it
	// commits, and never were when it rolls back. It waits for nothing but the statement. After an
	// error the transaction should be rolled back; what was wrong with tx, its type, its database, its
	// end, is in the error. It may be called concurrently, with a transaction of each caller's own.
	PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error
}

// Outbox keeps what a bus publishes in transactions in the service's own database until it is safe on the bus's
// transport. The bus owns its outbox as it owns its transport: its Run relays, and its Close closes. All methods may be called concurrently.
type Outbox interface {
	TxPublisher

	// Group returns the name under which operators find the outbox, with what it has set aside.
	Group() string

	// Relay hands committed messages to publish until ctx is done, those of a partition key one
	// after the other, and deletes them once publish has returned nil. Any number of relays, here
	// and in other processes, share the work. It ends soon after ctx; other errors than nil are final.
	Relay(ctx context.Context, publish PublishFunc) error

	// Problem returns why committed messages do not move, nil while they do. It does not block.
	Problem() error

	// Stats queries the database.
	Stats(ctx context.Context) (OutboxStats, error)

	// Close ends the relays and releases everything. Messages stay where they are.
	Close(ctx context.Context) error
}

// PublishFunc is [Transport].Publish.
type PublishFunc func(ctx context.Context, topic string, msgs ...*message.Message) error

// OutboxStats is what waits in an outbox, for all processes that share it.
type OutboxStats struct {
	Pending   int           // committed messages that are not known to be safe on the transport
	OldestAge time.Duration // how long the first of them has been waiting
}
