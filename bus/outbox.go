package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/intx"
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

// Outbox keeps what [Bus.InTx] publishes in the service's own database until it is safe on the bus's
// transport. The bus owns its outbox as it owns its transport: [Bus.Run] relays, and [Bus.Close]
// closes. All methods may be called concurrently.
type Outbox interface {
	driver.TxPublisher

	// Group is the name under which operators find the outbox, with what it has set aside.
	Group() string

	// Relay hands committed messages to publish until ctx is done, those of a partition key one
	// after the other, and deletes them once publish has returned nil. Any number of relays, here
	// and in other processes, share the work. It ends soon after ctx; other errors than nil are final.
	Relay(ctx context.Context, publish driver.PublishFunc) error

	// Problem is why committed messages do not move, nil while they do. It does not block.
	Problem() error

	// Stats asks the database.
	Stats(ctx context.Context) (driver.OutboxStats, error)

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

var (
	// ErrNoOutbox is what [InTx] answers on a bus that has no outbox and whose transport does not
	// publish in transactions.
	ErrNoOutbox = errors.New("no outbox: give bus.Config an Outbox over the transaction's database, such as sql.NewOutbox " +
		"(with fxmodule, LEAT_OUTBOX_URL), or use that database as the transport")

	errNilTx      = errors.New("the transaction is nil")
	errRouteLater = errors.New("the option RequireRoute can't be kept by an outbox: which groups want the event shows when it is relayed")
)

// InTx publishes events in a transaction of the service's own database: together with its rows, or not
// at all.
//
//	tx, err := db.BeginTx(ctx, nil)
//	...
//	err = b.InTx(tx).Publish(ctx, OrderPlaced{...})
//	...
//	err = tx.Commit() // now the order and its event are there, or neither
//
// Where the bus's transport is that database, the events are in their groups with the commit. Else
// they are in the outbox, from where a relay moves them to the transport within milliseconds. tx is a
// *sql.Tx, what embeds one, or a pgx.Tx. After an error, roll back.
//
// Events of one partition key keep the order in which their transactions got hold of what they have in
// common: lock the row that the key stands for, as an UPDATE of it does, before publishing.
type InTx struct {
	bus *Bus
	tx  any
}

// InTx is the bus for the length of a transaction; see [InTx].
func (b *Bus) InTx(tx any) InTx { return InTx{b, tx} }

// Publish encodes an event and writes it in the transaction. It blocks for one statement. What is
// published so is not waited for by [Bus.Idle], and observers hear of it when it is on the transport.
func (t InTx) Publish(ctx context.Context, e Event, opts ...PublishOption) error {
	return t.PublishAll(ctx, []Event{e}, opts...)
}

// PublishAll writes events in their order, and none if one of them can't be encoded.
func (t InTx) PublishAll(ctx context.Context, events []Event, opts ...PublishOption) error {
	msgs, p, err := t.bus.encodeAll(ctx, events, opts)
	if err != nil {
		return fmt.Errorf("bus: publish in transaction: %w", err)
	}
	return t.publish(ctx, p.requireRoute, msgs)
}

// PublishMessages writes messages that are encoded already, as [Bus.PublishMessages] publishes them.
func (t InTx) PublishMessages(ctx context.Context, msgs ...*message.Message) error {
	if err := t.bus.adopt(msgs); err != nil {
		return fmt.Errorf("bus: publish in transaction: %w", err)
	}
	return t.publish(ctx, false, msgs)
}

func (t InTx) publish(ctx context.Context, requireRoute bool, msgs []*message.Message) error {
	if rehearsed(ctx, msgs) {
		return nil
	}
	if err := t.mayPublish(ctx, requireRoute, msgs); err != nil {
		return fmt.Errorf("bus: publish in transaction: %w", err)
	}
	for _, msg := range msgs { // the transaction may roll back, so the ledger can't expect them
		delete(msg.Metadata, driver.HeaderInstance)
	}
	ctx = context.WithValue(ctx, txKey{}, t.tx)
	return eachRun(msgs, func(topic string, run []*message.Message) error {
		if t.bus.cfg.Outbox == nil {
			return t.bus.publishFor(ctx, nil, requireRoute, topic, run)
		}
		if err := t.bus.send(ctx, topic, run); err != nil {
			return fmt.Errorf("bus: publish %s in transaction: %w", topic, err)
		}
		return nil
	})
}

func (t InTx) mayPublish(ctx context.Context, requireRoute bool, msgs []*message.Message) error {
	b := t.bus
	switch {
	case t.tx == nil:
		return errNilTx
	case b.txPublisher() == nil:
		return ErrNoOutbox
	case b.isClosed() && DeliveryFrom(ctx) == nil:
		return driver.ErrClosed
	case b.cfg.Outbox != nil && requireRoute:
		return errRouteLater
	}
	if err := b.checkSizes(msgs); err != nil {
		return err
	}
	if b.cfg.Outbox == nil {
		return b.subscribe(intx.With(ctx))
	}
	return nil
}

// txPublisher is what writes in transactions, nil for nothing.
func (b *Bus) txPublisher() driver.TxPublisher {
	if b.cfg.Outbox != nil {
		return b.cfg.Outbox
	}
	p, _ := b.transport.(driver.TxPublisher)
	return p
}

// txKey marks the context of what is published in a transaction: it goes through the same publish
// middleware as everything else, and comes out at another place.
type txKey struct{}

// handOver is where the publish path ends: the transport, or the caller's transaction.
type handOver struct{ bus *Bus }

func (h handOver) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if tx := ctx.Value(txKey{}); tx != nil {
		return h.bus.txPublisher().PublishTx(ctx, tx, topic, msgs...)
	}
	return h.bus.transport.Publish(ctx, topic, msgs...)
}

// relay moves the outbox's messages to the transport until ctx is done. They went through the publish
// middleware when they were written.
func (b *Bus) relay(ctx context.Context) error {
	return b.cfg.Outbox.Relay(ctx, func(ctx context.Context, topic string, msgs ...*message.Message) error {
		return b.account(ctx, nil, false, topic, msgs, func(ctx context.Context, topic string, msgs []*message.Message) error {
			return b.transport.Publish(ctx, topic, msgs...)
		})
	})
}

// Outbox is the bus's, nil where it has none.
func (b *Bus) Outbox() driver.Outbox { return b.cfg.Outbox }

// OutboxStats asks the outbox's database what waits in it; [ErrNoOutbox] where there is none.
func (b *Bus) OutboxStats(ctx context.Context) (driver.OutboxStats, error) {
	if b.cfg.Outbox == nil {
		return driver.OutboxStats{}, fmt.Errorf("bus: outbox: %w", ErrNoOutbox)
	}
	return b.cfg.Outbox.Stats(ctx)
}

// outboxHealth is the outbox among the groups.
func (b *Bus) outboxHealth() Health {
	h := Health{Group: b.cfg.Outbox.Group(), State: b.state()}
	if err := b.cfg.Outbox.Problem(); err != nil {
		h.Degraded = map[string]string{"relay": driver.OneLine(errorText(err), driver.MaxErrorBytes)}
		if h.State == Running {
			h.State = Degraded
		}
	}
	return h
}
