package driver

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// A TxPublisher writes messages in the caller's transaction. A bus whose [Transport] is a TxPublisher needs no [Outbox].
type TxPublisher interface {
	// PublishTx writes messages of one topic in the transaction tx. They are published if and only if tx commits. It blocks
	// for one statement. After an error the transaction should be rolled back. The error says whether tx has a wrong type,
	// belongs to another database, or has ended. It may be called concurrently with different transactions.
	PublishTx(ctx context.Context, tx any, topic string, msgs ...*message.Message) error
}

// An Outbox stores the messages that a bus publishes in transactions in the service's own database until they are safe on the
// bus's transport. The bus owns its outbox: Run relays its messages, and Close closes it. All methods may be called
// concurrently.
type Outbox interface {
	TxPublisher

	// Group returns the name of the outbox for operators, under which they also find the messages that could not be relayed.
	Group() string

	// Relay calls publish with committed messages until ctx is done, and deletes them after publish has returned nil. Messages
	// of one partition key are published one after the other. Any number of relays, in this and other processes, share the
	// work. Relay blocks until shortly after ctx is done. An error is final.
	Relay(ctx context.Context, publish PublishFunc) error

	// Problem returns why committed messages are not relayed, nil while they are. It does not block.
	Problem() error

	// Stats queries the database for the messages that wait.
	Stats(ctx context.Context) (OutboxStats, error)

	// Close stops the relays and releases all resources. Messages stay in the outbox.
	Close(ctx context.Context) error
}

// PublishFunc has the signature of [Transport].Publish.
type PublishFunc func(ctx context.Context, topic string, msgs ...*message.Message) error

// OutboxStats describes the messages that wait in an outbox, for all processes that share it. An outbox may count messages up to a
// limit only; OldestAge is then that of the oldest message counted.
type OutboxStats struct {
	Pending   int           // committed messages that are not known to be safe on the transport
	OldestAge time.Duration // how long the oldest of them has been waiting
}
