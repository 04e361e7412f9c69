package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

// subscriptions keeps what was subscribed last.
type subscriptions struct {
	bus.Transport
	last driver.Subscription
}

func (s *subscriptions) Subscribe(ctx context.Context, sub driver.Subscription) (driver.Receiver, error) {
	s.last = sub
	return s.Transport.Subscribe(ctx, sub)
}

func TestSubscription_carriesTheDelaysOfRedeliveries(t *testing.T) {
	spy := &subscriptions{Transport: memory.New(memory.Config{})}
	b, err := bus.New(spy, bus.Config{Service: "shop"})
	require.NoError(t, err)
	require.NoError(t, b.Handle(bus.Handler{
		Name: "ledger", Topics: []string{"order.paid.v1"},
		Bind: func(bus.Encoder) message.HandlerFunc {
			return func(*message.Message) ([]*message.Message, error) { return nil, nil }
		},
		Retry: &bus.RetryPolicy{Delays: []time.Duration{20 * time.Millisecond, 5 * time.Minute, 5 * time.Second}},
		RetryOn: []bus.RetryRule{
			{Match: func(error) bool { return true }},
			{Match: func(error) bool { return true }, Policy: &bus.RetryPolicy{Delays: []time.Duration{300 * time.Millisecond, 5 * time.Second}, InProcess: -1}},
		},
	}))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	<-b.Running()
	stop()
	require.NoError(t, <-done)
	require.Equal(t, []time.Duration{300 * time.Millisecond, 5 * time.Second, 5 * time.Minute}, spy.last.Delays)
	require.NoError(t, b.Close(context.Background()))
}

func TestFailed_hasNoJitterWhereDelaysAreFixed(t *testing.T) {
	policy := bus.RetryPolicy{Delays: []time.Duration{5 * time.Second}}
	for range 100 {
		d := &bus.Delivery{Delivery: driver.Delivery{Message: message.NewMessage("m", nil), Attempt: 1, FixedDelays: true}}
		after, inProcess, err := d.Failed(errors.New("bad"), policy)
		require.NoError(t, err)
		require.Equal(t, 5*time.Second, after)
		require.False(t, inProcess)
	}
}
