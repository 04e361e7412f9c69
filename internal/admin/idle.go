package admin

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// Idle keeps a service's bus from doing anything while one of the service's commands runs: even if constructors and start hooks of the
// application publish, nothing is published and nothing is consumed. The commands use the transport and the outbox that Idle replaces.
type Idle struct {
	Transport driver.Transport
	Outbox    driver.Outbox // nil if there is none
}

// Hold returns a transport and an outbox for the bus that do nothing.
func (i *Idle) Hold(t driver.Transport, o driver.Outbox) (driver.Transport, driver.Outbox) {
	i.Transport, i.Outbox = t, o
	if o != nil {
		o = &idleOutbox{o}
	}
	idle := idleTransport{t}
	inspector, counts := t.(driver.Inspector) // what only reads may be registered for metrics
	_, tx := t.(driver.TxPublisher)
	switch {
	case tx && counts:
		t = &struct {
			idleTransport
			idleTx
			driver.Inspector
		}{idle, idleTx{}, inspector}
	case tx:
		t = &struct {
			idleTransport
			idleTx
		}{idle, idleTx{}}
	case counts:
		t = &struct {
			idleTransport
			driver.Inspector
		}{idle, inspector}
	default:
		t = &idle
	}
	return t, o
}

// idleTransport publishes nothing and creates no groups.
type idleTransport struct{ driver.Transport }

func (*idleTransport) Publish(context.Context, string, ...*message.Message) error { return nil }

func (*idleTransport) Subscribe(context.Context, driver.Subscription) (driver.Receiver, error) {
	return idleReceiver{}, nil
}

// idleTx leaves users' transactions as they are.
type idleTx struct{}

func (idleTx) PublishTx(context.Context, any, string, ...*message.Message) error { return nil }

// idleOutbox accepts nothing and relays nothing.
type idleOutbox struct{ driver.Outbox }

func (*idleOutbox) PublishTx(context.Context, any, string, ...*message.Message) error { return nil }

func (*idleOutbox) Relay(ctx context.Context, _ driver.PublishFunc) error {
	<-ctx.Done()
	return nil
}

// idleReceiver delivers nothing.
type idleReceiver struct{}

func (idleReceiver) Next(ctx context.Context) (*driver.Delivery, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (idleReceiver) Close(context.Context) error { return nil }
