package memory_test

import (
	"context"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

func TestSubscribe_joiningKeepsTheGroupVisible(t *testing.T) {
	transport := memory.New(memory.Config{})
	sub := driver.Subscription{Group: "shop.ledger", Topics: []string{"order.paid.v1"}, Concurrency: 1}
	_, err := transport.Subscribe(t.Context(), sub)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var joining sync.WaitGroup
	joining.Go(func() {
		for ctx.Err() == nil {
			if _, err := transport.Subscribe(ctx, sub); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20_000 {
		if err = transport.Publish(t.Context(), "order.paid.v1", message.NewMessage("a", nil)); err != nil {
			break
		}
	}
	cancel()
	joining.Wait()
	require.NoError(t, err, "the group is there all the time")
	require.NoError(t, transport.Close(t.Context()))
}
