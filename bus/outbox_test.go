package bus_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

// fakeOutbox is committed at once.
type fakeOutbox struct {
	mu      sync.Mutex
	rows    []*message.Message
	tx      any
	problem error
	closed  bool
	changed chan struct{}
}

func newFakeOutbox() *fakeOutbox { return &fakeOutbox{changed: make(chan struct{}, 1)} }

func (o *fakeOutbox) PublishTx(_ context.Context, tx any, _ string, msgs ...*message.Message) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tx, o.rows = tx, append(o.rows, msgs...)
	select {
	case o.changed <- struct{}{}:
	default:
	}
	return nil
}

func (o *fakeOutbox) Group() string { return "test.outbox" }

func (o *fakeOutbox) Relay(ctx context.Context, publish driver.PublishFunc) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.changed:
		}
		o.mu.Lock()
		if o.tx == "broken" {
			o.mu.Unlock()
			return errors.New("the outbox is gone")
		}
		for _, msg := range o.rows {
			if err := publish(ctx, driver.TopicOf(msg), msg); err != nil {
				o.problem = err
			}
		}
		o.rows = nil
		o.mu.Unlock()
	}
}

func (o *fakeOutbox) Problem() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.problem
}

func (o *fakeOutbox) Stats(context.Context) (driver.OutboxStats, error) {
	return driver.OutboxStats{Pending: len(o.rows)}, nil
}

func (o *fakeOutbox) Close(context.Context) error { o.closed = true; return nil }

func TestInTx_runsPublishMiddlewareOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newFakeOutbox()
		decorated := 0
		b, err := bus.New(memory.New(memory.Config{}), bus.Config{
			Service: "test", Outbox: o,
			Decorators: []message.PublisherDecorator{message.MessageTransformPublisherDecorator(func(m *message.Message) {
				decorated++
				m.Metadata["seen"] = "yes"
			})},
		})
		require.NoError(t, err)
		var got []string
		require.NoError(t, b.Handle(rawHandler("ledger", "order.>", func(msg *message.Message) error {
			got = append(got, driver.TopicOf(msg)+" "+msg.Metadata["seen"])
			return nil
		})))
		ended := make(chan error, 1)
		go func() { ended <- b.Run(context.Background()) }()
		<-b.Running()
		require.NoError(t, b.InTx("tx").Publish(t.Context(), orderPaid{}))
		require.Equal(t, "tx", o.tx)
		synctest.Wait()
		require.NoError(t, b.Publish(t.Context(), orderPaid{}))
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, []string{"order.paid.v1 yes", "order.paid.v1 yes"}, got)
		require.Equal(t, 2, decorated)
		require.EqualValues(t, 2, b.Stats().Published)
		require.EqualValues(t, 1, b.Stats().Groups["ledger"].Expected, "what may roll back is not expected")

		health := b.Health()
		require.Equal(t, bus.Health{Group: "test.outbox", State: bus.Running}, health[len(health)-1])
		o.problem = errors.New("no broker")
		health = b.Health()
		require.Equal(t, bus.Degraded, health[len(health)-1].State)
		require.Equal(t, map[string]string{"relay": "no broker"}, health[len(health)-1].Degraded)
		require.NoError(t, b.Close(t.Context()))
		require.NoError(t, <-ended)
		require.True(t, o.closed)
		require.ErrorIs(t, b.InTx("tx").Publish(t.Context(), orderPaid{}), bus.ErrClosed)
	})
}

func TestRelay_endStopsTheBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "test", Outbox: newFakeOutbox()})
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- b.Run(context.Background()) }()
		<-b.Running()
		require.NoError(t, b.InTx("broken").Publish(t.Context(), orderPaid{}))
		require.ErrorContains(t, <-ended, `group "test.outbox": the outbox is gone`)
		require.NoError(t, b.Close(t.Context()))
	})
}

func TestInTx_needsAnOutboxOrATxPublisher(t *testing.T) {
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "test"})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	require.ErrorIs(t, b.InTx("tx").Publish(t.Context(), orderPaid{}), bus.ErrNoOutbox)
	_, err = b.OutboxStats(t.Context())
	require.ErrorIs(t, err, bus.ErrNoOutbox)
}

func rawHandler(name, pattern string, fn func(*message.Message) error) bus.Handler {
	return bus.Handler{Name: name, Topics: []string{pattern}, Bind: func(bus.Encoder) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) { return nil, fn(msg) }
	}, Concurrency: 1, Timeout: time.Minute}
}
