package admin

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// Idle keeps a service's bus from doing anything while one of the service's verbs runs: whatever the
// constructors and start hooks of its application do, nothing is published and nothing is consumed. The
// verbs themselves work on what it has taken the place of.
type Idle struct {
	Transport driver.Transport
	Outbox    driver.Outbox // nil where there is none
}

// Hold returns what the bus is to have in place of its transport and its outbox.
func (i *Idle) Hold(t driver.Transport, o driver.Outbox) (driver.Transport, driver.Outbox) {
	i.Transport, i.Outbox = t, o
	if o != nil {
		o = &idleOutbox{o}
	}
	if _, ok := t.(driver.TxPublisher); ok {
		return &struct {
			idleTransport
			idleTx
		}{idleTransport: idleTransport{t}}, o
	}
	return &idleTransport{t}, o
}

// idleTransport publishes nothing, and makes no groups.
type idleTransport struct{ driver.Transport }

func (*idleTransport) Publish(context.Context, string, ...*message.Message) error { return nil }

func (*idleTransport) Subscribe(context.Context, driver.Subscription) (driver.Receiver, error) {
	return idleFeed{}, nil
}

// idleTx leaves users' transactions as they are.
type idleTx struct{}

func (idleTx) PublishTx(context.Context, any, string, ...*message.Message) error { return nil }

// idleOutbox takes nothing in, and relays nothing.
type idleOutbox struct{ driver.Outbox }

func (*idleOutbox) PublishTx(context.Context, any, string, ...*message.Message) error { return nil }

func (*idleOutbox) Relay(ctx context.Context, _ driver.PublishFunc) error {
	<-ctx.Done()
	return nil
}

// idleFeed hands nothing out.
type idleFeed struct{}

func (idleFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (idleFeed) Close(context.Context) error { return nil }
