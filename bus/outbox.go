package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/intx"
)

var (
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

// InTx returns the bus for the length of a transaction; see [InTx].
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
	if keptInDryRun(ctx, msgs) {
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
		return ErrClosed
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

// txPublisher returns what writes in transactions, nil if nothing does.
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
	send := announce(b.cfg.Observers, func(ctx context.Context, topic string, msgs []*message.Message) error {
		return b.transport.Publish(ctx, topic, msgs...)
	}, true)
	return b.cfg.Outbox.Relay(ctx, func(ctx context.Context, topic string, msgs ...*message.Message) error {
		return b.account(ctx, nil, false, topic, msgs, send)
	})
}

// Outbox returns the bus's outbox, nil if it has none.
func (b *Bus) Outbox() Outbox { return b.cfg.Outbox }

// OutboxStats asks the outbox's database what waits in it; [ErrNoOutbox] where there is none.
func (b *Bus) OutboxStats(ctx context.Context) (driver.OutboxStats, error) {
	if b.cfg.Outbox == nil {
		return driver.OutboxStats{}, fmt.Errorf("bus: outbox: %w", ErrNoOutbox)
	}
	return b.cfg.Outbox.Stats(ctx)
}

// outboxHealth returns the state of the outbox, which is shown among the groups.
func (b *Bus) outboxHealth() Health {
	h := Health{Group: b.cfg.Outbox.Group(), State: b.state()}
	if err := b.cfg.Outbox.Problem(); err != nil {
		h.Degraded = map[string]string{"relay": driver.OneLine(fmt.Sprint(err), driver.MaxErrorBytes)}
		if h.State == Running {
			h.State = Degraded
		}
	}
	return h
}
