package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type OrderPaid struct{ OrderID string }

func (OrderPaid) EventType() (string, int) { return "order.paid", 1 }

type ReceiptSent struct{ OrderID string }

func (ReceiptSent) EventType() (string, int) { return "receipt.sent", 1 }

func sendReceipt(_ context.Context, e OrderPaid) (ReceiptSent, error) {
	return ReceiptSent(e), nil
}

func archive(context.Context, ReceiptSent) error { return nil }

func TestBus_waitsForTheWholeCascade(t *testing.T) {
	h := bustest.New(t, handlers.Reply("send-receipt", sendReceipt), handlers.Func("archive", archive))
	for i := range 50 {
		h.Publish(OrderPaid{OrderID: fmt.Sprint(i)})
	}
	h.WaitIdle()
	h.RequireHandled("send-receipt", 50)
	h.RequireHandled("archive", 50)
	require.Len(t, bustest.Published[ReceiptSent](h), 50)
	bustest.RequirePublished(h, func(e ReceiptSent) bool { return e.OrderID == "42" })
}

func TestBus_retriesTakeNoRealTimeInSynctest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := bustest.New(t, handlers.Func("archive", archive))
		began := time.Now()
		for range 8 { // all tries of the default policy
			h.FailNext("archive", errors.New("disk full"))
		}
		h.Publish(ReceiptSent{OrderID: "42"})
		h.WaitIdle()
		dead := h.RequirePoisoned("archive", 1)
		require.Equal(t, "made to fail: disk full", dead[0].Fault.Text)
		require.Equal(t, 8, dead[0].Fault.Tries)
		require.Equal(t, 5, dead[0].Fault.Attempts)
		require.Greater(t, time.Since(began), 30*time.Minute)

		n, err := h.Bus().Transport().PoisonQueue(h.Bus().GroupName("archive")).Replay(t.Context(), dead[0].ID)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		h.WaitIdle()
		h.RequireHandled("archive", 1)
	})
}

type StockMoved struct {
	Article string
	N       int
}

func (StockMoved) EventType() (string, int) { return "stock.moved", 1 }
func (e StockMoved) PartitionKey() string   { return e.Article }

// What waits behind a poisoned message is waited for by nobody, and comes in order after its replay.
func TestParkedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var moved []int
		h := bustest.New(t, handlers.Func("count", func(_ context.Context, e StockMoved) error {
			if e.Article == "hat" {
				moved = append(moved, e.N)
			}
			return nil
		}, handlers.OrderedByKey()))
		h.FailNext("count", bus.Permanent(errors.New("no such article")))
		for n := range 4 {
			h.Publish(StockMoved{Article: "hat", N: n})
		}
		h.WaitIdle()
		h.Publish(StockMoved{Article: "coat"})
		h.WaitIdle()
		h.RequireHandled("count", 1)
		dead := h.RequirePoisoned("count", 1)
		require.Equal(t, 3, dead[0].Parked)
		stats := h.Bus().Stats().Groups["count"]
		require.Equal(t, uint64(3), stats.Parked)
		require.Zero(t, stats.Outstanding())

		h.FailNext("count", errors.New("a passing failure"))
		_, err := h.Bus().Transport().PoisonQueue(h.Bus().GroupName("count")).Replay(t.Context(), dead[0].ID)
		require.NoError(t, err)
		h.Publish(StockMoved{Article: "hat", N: 4})
		h.WaitIdle()
		require.Equal(t, []int{0, 1, 2, 3, 4}, moved)
		h.RequireHandled("count", 6)
		h.RequireDuplicates("count", 0)
		require.Zero(t, h.Bus().Stats().Groups["count"].Outstanding())
	})
}

func TestBus_deliversDuplicatesAndRedeliveries(t *testing.T) {
	h := bustest.New(t, handlers.Func("archive", archive))
	h.Publish(ReceiptSent{OrderID: "42"})
	h.WaitIdle()
	bustest.Duplicate[ReceiptSent](h)
	h.WaitIdle()
	h.RequireHandled("archive", 1)
	h.RequireDuplicates("archive", 1)
	bustest.Redeliver[ReceiptSent](h, "archive")
	h.WaitIdle()
	h.RequireHandled("archive", 1)
	h.RequireDuplicates("archive", 2) // it was published twice, and is one event
}

// recorder stands in for the test that uses the harness.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper()        {}
func (r *recorder) Cleanup(func()) {}
func (r *recorder) Fatalf(f string, a ...any) {
	r.failure = fmt.Sprintf(f, a...)
	panic(r)
}

func TestRequire_unknownHandlerFails(t *testing.T) {
	r := &recorder{TB: t}
	h := bustest.New(r, handlers.Func("archive", archive))
	defer func() { require.NoError(t, h.Bus().Close(context.Background())) }()
	for _, ask := range []func(){
		func() { h.FailNext("archvie", errors.New("never")) },
		func() { h.RequireHandled("archvie", 0) },
		func() { bustest.Redeliver[ReceiptSent](h, "archvie") },
	} {
		require.PanicsWithValue(t, r, ask)
		require.Contains(t, r.failure, `no handler "archvie"; there are archive`)
	}
	require.PanicsWithValue(t, r, func() { bustest.Duplicate[ReceiptSent](h) })
	require.Contains(t, r.failure, "no receipt.sent.v1 was published")
}

func TestRequire_failureListsDeliveries(t *testing.T) {
	r := &recorder{TB: t}
	h := bustest.New(r, handlers.Func("archive", func(context.Context, ReceiptSent) error { return bus.Permanent(errors.New("disk full")) }))
	defer func() { require.NoError(t, h.Bus().Close(context.Background())) }()
	h.Publish(ReceiptSent{OrderID: "42"})
	h.WaitIdle()
	require.PanicsWithValue(t, r, func() { h.RequireHandled("archive", 1) })
	for _, want := range []string{"archive: 0 handled, want 1", "receipt.sent.v1", `{"OrderID":"42"}`, "test.archive, attempt 1, up to try 1: poisoned: disk full"} {
		require.Contains(t, r.failure, want)
	}
}

func TestHarness_waitIdleWaitsAfterARedelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := 0
		h := bustest.New(t, handlers.Func("ledger", func(_ context.Context, e OrderPaid) error {
			time.Sleep(time.Second)
			done++
			return nil
		}))
		h.Publish(OrderPaid{OrderID: "1"})
		h.WaitIdle()
		bustest.Redeliver[OrderPaid](h, "ledger")
		bustest.Redeliver[OrderPaid](h, "ledger")
		h.WaitIdle()
		h.Publish(OrderPaid{OrderID: "2"})
		require.NoError(t, h.Bus().Idle(t.Context()))
		require.Equal(t, 2, done, "Idle waits for the handler")
		require.Zero(t, h.Bus().Stats().Groups["ledger"].Outstanding())
	})
}
