package admin_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/admin"
)

func TestPublish_refusesWhatAHandlerWouldRefuse(t *testing.T) {
	b := newBus(t)
	require.NoError(t, b.Handle(handlers.Func("mail", func(context.Context, orderPaid) error { return nil })))
	client := clientOf(t, admin.Endpoint{Addr: filepath.Join(t.TempDir(), "s"), Bus: b})

	for data, refusal := range map[string]string{
		`{"Order":1}`:     "no group wants the message", // the bus does not run: the message got that far
		`{"Order":"one"}`: "the handler mail would refuse it",
	} {
		msg, err := admin.Event{Type: "order.paid.v2", Source: "test", Data: []byte(data)}.Message()
		require.NoError(t, err)
		require.ErrorContains(t, client.Publish(t.Context(), "order.paid.v2", msg), refusal)
	}
}
