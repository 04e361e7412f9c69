package handlers_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
)

// paidV2 is the next version of orderPaid.
type paidV2 struct {
	OrderID string `json:"order_id"`
}

func (paidV2) EventType() (string, int) { return "order.paid", 2 }

func TestRoutes_callTheFunctionOfTheType(t *testing.T) {
	var got box[string]
	w := newWorld(t, handlers.Routes("ledger", []bus.Handler{
		handlers.Func("v1", func(_ context.Context, e orderPaid) error {
			got.add("v1 " + e.OrderID)
			return nil
		}),
		handlers.Func("v2", func(_ context.Context, e paidV2) error {
			got.add("v2 " + e.OrderID)
			return nil
		}),
		handlers.Reply("shipped", func(_ context.Context, e *orderShipped) (receiptSent, error) {
			got.add("shipped " + e.OrderID)
			return receiptSent{OrderID: e.OrderID}, nil
		}),
	}, handlers.Concurrency(1)), handlers.Func("archive", func(context.Context, receiptSent) error { return nil }))
	w.publish(orderPaid{OrderID: "a"}, paidV2{OrderID: "b"}, &orderShipped{OrderID: "c"})
	w.raw("order.shipped.v1", `{}`)
	w.idle()
	require.Equal(t, []string{"v1 a", "v2 b", "shipped c"}, got.all())
	require.EqualValues(t, 1, w.stats("archive").Handled)
	dead := w.poisoned("ledger")
	require.Contains(t, dead.Fault.Text, "order.shipped.v1: the handler does not take this type: it takes [order.paid.v1 order.paid.v2 order.shipped.v2]")
	require.Equal(t, 1, dead.Fault.Tries)

	h := w.bus.Handlers()[0]
	require.Equal(t, []string{"order.paid.*", "order.paid", "order.shipped.*", "order.shipped"}, h.Topics, "each once")
	require.Equal(t, 1, h.Concurrency)
}

func TestRoutes_rejectInvalidRoutes(t *testing.T) {
	paid := func(name string) bus.Handler {
		return handlers.Func(name, func(context.Context, orderPaid) error { return nil })
	}
	require.PanicsWithValue(t, `handlers: handler "ledger": two routes take order.paid.v1`, func() {
		handlers.Routes("ledger", []bus.Handler{paid("a"), paid("b")})
	})
	require.PanicsWithValue(t, `handlers: handler "ledger": route "audit" takes no event type; a raw handler has to be one of its own`, func() {
		raw := handlers.Raw("audit", []string{"order.>"}, func(context.Context, *message.Message) error { return nil })
		handlers.Routes("ledger", []bus.Handler{paid("a"), raw})
	})
	require.ErrorContains(t, handlers.Routes("ledger", nil).Validate(), "it subscribes to no topic")
}
