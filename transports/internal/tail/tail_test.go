package tail_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/tail"
)

func TestBuffer_neverBlocksAndDropsWhatIsTooMuch(t *testing.T) {
	b := tail.New()
	for range 5000 {
		b.Add("order.paid.v1", message.NewMessage("id", nil))
	}
	b.Close()
	n := 0
	err := b.Read(t.Context(), func(topic string, _ *message.Message) error {
		require.Equal(t, "order.paid.v1", topic)
		n++
		return nil
	})
	require.ErrorIs(t, err, driver.ErrClosed)
	require.Equal(t, 1000, n)
}

func TestBuffer_readEndsWithItsContextAndWithAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := tail.New()
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		cancel(enough)
		require.ErrorIs(t, b.Read(ctx, nil), enough)
		b.Add("t", message.NewMessage("id", nil))
		require.ErrorIs(t, b.Read(t.Context(), func(string, *message.Message) error { return enough }), enough)
	})
}
