package admin_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

type orderPaid struct{ Order int }

func (orderPaid) EventType() (name string, version int) { return "order.paid", 2 }

type orderPaidV1 struct{ ID int }

func (orderPaidV1) EventType() (name string, version int) { return "order.paid", 1 }

type receiptSent struct{}

func (receiptSent) EventType() (name string, version int) { return "receipt.sent", 1 }

var errDeclined = errors.New("card declined")

// TestDryRun_inARunningService runs a service's own handlers in its own stack while it runs, on the memory
// transport.
func TestDryRun_inARunningService(t *testing.T) {
	stack := middleware.Standard(middleware.Config{Upcasters: []middleware.Upcaster{
		middleware.Upcast(func(old orderPaidV1) orderPaid { return orderPaid{Order: old.ID} }),
	}})
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Stack: stack, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	fixed := make(chan struct{})
	require.NoError(t, b.Handle(handlers.Func("mail", func(ctx context.Context, e orderPaid) error {
		select {
		case <-fixed:
		default:
			return bus.Permanent(errDeclined)
		}
		if e.Order == 3 {
			panic("three")
		}
		return b.Publish(ctx, receiptSent{})
	}, handlers.Concurrency(1))))
	require.NoError(t, b.Handle(handlers.Func("archive", func(context.Context, receiptSent) error { return nil })))
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	defer func() {
		require.NoError(t, b.Close(context.Background()))
		require.NoError(t, <-ended)
	}()
	require.NoError(t, b.PublishAll(t.Context(), []bus.Event{orderPaid{1}, orderPaidV1{2}, orderPaid{3}}))
	require.NoError(t, b.Idle(t.Context()))
	close(fixed)

	client := clientOf(t, admin.Endpoint{Addr: filepath.Join(t.TempDir(), "s"), Bus: b, DryRunner: admin.NewLocalDryRunner(b, stack)})

	queue := client.PoisonQueue("shop.mail")
	before, err := queue.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, before, 3)
	undoes, err := client.Undoes(t.Context(), "shop.mail")
	require.NoError(t, err)
	require.False(t, undoes)
	results, err := client.DryRun(t.Context(), "shop.mail", before)
	require.NoError(t, err)
	require.Equal(t, []admin.DryRunResult{
		{ID: before[0].ID, Published: 1},
		{ID: before[1].ID, Published: 1},
		{ID: before[2].ID, Error: "panic: three", Class: "panic(string)"},
	}, results)
	_, err = client.Undoes(t.Context(), "shop.mial")
	require.ErrorContains(t, err, "Did you mean shop.mail?")

	after, err := queue.List(t.Context(), "", 10)
	require.NoError(t, err)
	require.Len(t, after, len(before))
	for i := range before {
		require.Equal(t, admin.Full("shop.mail", before[i]), admin.Full("shop.mail", after[i]))
	}
	require.NoError(t, b.Idle(t.Context()))
	require.Zero(t, b.Stats().Groups["archive"].Handled, "nothing was published")
	require.Equal(t, uint64(3), b.Stats().Published)

	n, err := queue.Replay(t.Context(), before[0].ID, before[1].ID)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Eventually(t, func() bool { return b.Stats().Groups["archive"].Handled == 2 }, patience, tick,
		"the dry run has left no claim in the dedup store")
}

// TestDryRun_rejectsUnknownStacks uses a stack whose steps are unknown.
func TestDryRun_rejectsUnknownStacks(t *testing.T) {
	b := newBus(t)
	h := handlers.Func("mail", func(context.Context, orderPaid) error { return nil }, handlers.Stack(plain{}))
	require.NoError(t, b.Handle(h))
	_, err := admin.NewLocalDryRunner(b, middleware.Stack{}).DryRun(t.Context(), "shop.mail", nil)
	require.ErrorContains(t, err, "its own stack (admin_test.plain), whose steps are unknown")
}

type plain struct{}

func (plain) Wrap(_ bus.Handler, next message.HandlerFunc) (message.HandlerFunc, error) {
	return next, nil
}
