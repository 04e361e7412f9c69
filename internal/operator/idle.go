package operator

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Idle keeps a service's bus from doing anything while one of the service's verbs runs: whatever the
// constructors and start hooks of its application do, nothing is published and nothing is consumed. The
// verbs themselves work on what it has taken the place of.
type Idle struct {
	Transport bus.Transport
	Outbox    bus.Outbox // nil where there is none
}

// Hold returns what the bus is to have in place of its transport and its outbox.
func (i *Idle) Hold(t bus.Transport, o bus.Outbox) (bus.Transport, bus.Outbox) {
	i.Transport, i.Outbox = t, o
	if o != nil {
		o = &idleOutbox{o}
	}
	if _, ok := t.(bus.TxPublisher); ok {
		return &struct {
			idleTransport
			idleTx
		}{idleTransport: idleTransport{t}}, o
	}
	return &idleTransport{t}, o
}

// idleTransport publishes nothing, and makes no groups.
type idleTransport struct{ bus.Transport }

func (*idleTransport) Publish(context.Context, string, ...*message.Message) error { return nil }

func (*idleTransport) Subscribe(context.Context, bus.Subscription) (bus.Feed, error) {
	return idleFeed{}, nil
}

// idleTx leaves users' transactions as they are.
type idleTx struct{}

func (idleTx) PublishTx(context.Context, any, string, ...*message.Message) error { return nil }

// idleOutbox takes nothing in, and relays nothing.
type idleOutbox struct{ bus.Outbox }

func (*idleOutbox) PublishTx(context.Context, any, string, ...*message.Message) error { return nil }

func (*idleOutbox) Relay(ctx context.Context, _ bus.PublishFunc) error {
	<-ctx.Done()
	return nil
}

// idleFeed hands nothing out.
type idleFeed struct{}

func (idleFeed) Next(ctx context.Context) (*bus.Delivery, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (idleFeed) Close(context.Context) error { return nil }
