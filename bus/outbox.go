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
	errRouteLater = errors.New("the option RequireRoute doesn't work with an outbox: it is not known before the relay publishes the event which groups get it")
)

// InTx publishes events in a transaction of the service's own database, so that they are published if and only if the
// transaction commits.
//
//	tx, err := db.BeginTx(ctx, nil)
//	...
//	err = b.InTx(tx).Publish(ctx, OrderPlaced{...})
//	...
//	err = tx.Commit() // the order and its event are written, or neither
//
// If the bus's transport is in that database, the commit puts the events into their groups. Otherwise the commit puts them
// into the outbox, and a relay moves them to the transport within milliseconds. tx is a *sql.Tx, a struct that embeds one, or
// a pgx.Tx. After an error, roll back.
//
// Two transactions that publish events of one partition key at the same time may commit in any order. To keep the order of
// such events, lock the row that the key stands for before publishing; an UPDATE of the row does that.
//
// An InTx belongs to one goroutine, as its transaction does.
type InTx struct {
	bus *Bus
	tx  any
}

// InTx returns a publisher that publishes in the transaction tx; see [InTx].
func (b *Bus) InTx(tx any) InTx { return InTx{b, tx} }

// Publish encodes an event and writes it in the transaction. It blocks for one statement. It returns [ErrNoOutbox] if neither
// the bus has an outbox nor its transport publishes in transactions, and [ErrClosed] after Close. [Bus.Idle] does not wait for
// the event. Observers see it when it is safe on the transport.
func (t InTx) Publish(ctx context.Context, e Event, opts ...PublishOption) error {
	return t.PublishAll(ctx, []Event{e}, opts...)
}

// PublishAll writes events in their order, and none of them if one can't be encoded.
func (t InTx) PublishAll(ctx context.Context, events []Event, opts ...PublishOption) error {
	msgs, p, err := t.bus.encoder.encodeAll(ctx, events, opts)
	if err != nil {
		return fmt.Errorf("bus: publish in transaction: %w", err)
	}
	return t.publish(ctx, p.requireRoute, msgs)
}

// PublishMessages writes messages that are encoded already, as [Bus.PublishMessages] publishes them.
func (t InTx) PublishMessages(ctx context.Context, msgs ...*message.Message) error {
	if err := t.bus.encoder.prepare(msgs); err != nil {
		return fmt.Errorf("bus: publish in transaction: %w", err)
	}
	return t.publish(ctx, false, msgs)
}

func (t InTx) publish(ctx context.Context, requireRoute bool, msgs []*message.Message) error {
	if captureDryRun(ctx, msgs) {
		return nil
	}
	if err := t.checkPublish(ctx, requireRoute, msgs); err != nil {
		return fmt.Errorf("bus: publish in transaction: %w", err)
	}
	for _, msg := range msgs { // the transaction may roll back, so the bus does not track them
		delete(msg.Metadata, driver.HeaderInstance)
	}
	ctx = context.WithValue(ctx, txKey{}, t.tx)
	return eachRun(msgs, func(topic string, run []*message.Message) error {
		if t.bus.cfg.Outbox == nil {
			return t.bus.sender.publishFor(ctx, nil, requireRoute, topic, run)
		}
		if err := t.bus.sender.send(ctx, topic, run); err != nil {
			return fmt.Errorf("bus: publish %s in transaction: %w", topic, err)
		}
		return nil
	})
}

func (t InTx) checkPublish(ctx context.Context, requireRoute bool, msgs []*message.Message) error {
	b := t.bus
	switch {
	case t.tx == nil:
		return errNilTx
	case b.sender.txPublisher() == nil:
		return ErrNoOutbox
	case b.life.isClosed() && DeliveryFrom(ctx) == nil:
		return ErrClosed
	case b.cfg.Outbox != nil && requireRoute:
		return errRouteLater
	}
	if err := b.sender.checkSizes(msgs); err != nil {
		return err
	}
	if b.cfg.Outbox == nil {
		return b.groups.subscribe(intx.With(ctx))
	}
	return nil
}

// txPublisher returns the outbox, or else the transport if it publishes in transactions, or else nil.
func (s *sender) txPublisher() driver.TxPublisher {
	if s.cfg.Outbox != nil {
		return s.cfg.Outbox
	}
	p, _ := s.transport.(driver.TxPublisher)
	return p
}

// txKey is the key of the transaction in the context of a publish by InTx. Its messages go through the same publish
// middleware as all others, and transportPublisher writes them in the transaction.
type txKey struct{}

// transportPublisher is the end of the publish path: it publishes to the transport, or in the caller's transaction.
type transportPublisher struct{ *sender }

func (h transportPublisher) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if tx := ctx.Value(txKey{}); tx != nil {
		return h.txPublisher().PublishTx(ctx, tx, topic, msgs...)
	}
	return h.transport.Publish(ctx, topic, msgs...)
}

// relay moves the outbox's messages to the transport until ctx is done. It skips the publish middleware: they went through it
// when they were written.
func (s *sender) relay(ctx context.Context) error {
	send := withPublishObservers(s.cfg.Observers, func(ctx context.Context, topic string, msgs []*message.Message) error {
		return s.transport.Publish(ctx, topic, msgs...)
	}, true)
	return s.cfg.Outbox.Relay(ctx, func(ctx context.Context, topic string, msgs ...*message.Message) error {
		return s.publishTracked(ctx, nil, false, topic, msgs, send)
	})
}

// Outbox returns the bus's outbox, nil if it has none.
func (b *Bus) Outbox() driver.Outbox { return b.cfg.Outbox }

// OutboxStats queries the outbox's database for the messages that wait in it. It returns [ErrNoOutbox] if the bus has no
// outbox.
func (b *Bus) OutboxStats(ctx context.Context) (driver.OutboxStats, error) {
	if b.cfg.Outbox == nil {
		return driver.OutboxStats{}, fmt.Errorf("bus: outbox: %w", ErrNoOutbox)
	}
	return b.cfg.Outbox.Stats(ctx)
}
