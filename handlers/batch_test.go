package handlers_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
)

// orders makes events with these ids.
func orders(ids ...string) []bus.Event {
	events := make([]bus.Event, len(ids))
	for i, id := range ids {
		events[i] = orderPaid{OrderID: id}
	}
	return events
}

func idsOf(events []orderPaid) []string {
	ids := make([]string, len(events))
	for i, e := range events {
		ids[i] = e.OrderID
	}
	slices.Sort(ids)
	return ids
}

// collect returns a batch function that notes its batches.
func collect(got *box[[]string]) func(context.Context, []orderPaid) error {
	return func(_ context.Context, events []orderPaid) error {
		got.add(idsOf(events))
		return nil
	}
}

func TestBatch_handledWhenFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[[]string]
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 3, Wait: time.Hour}, collect(&got)))
		began := time.Now()
		w.publish(orders("a", "b", "c")...)
		w.publish(orders("d", "e", "f")...)
		w.idle()
		require.Zero(t, time.Since(began))
		require.Equal(t, [][]string{{"a", "b", "c"}, {"d", "e", "f"}}, got.all())
		require.EqualValues(t, 6, w.stats("ledger").Handled)
	})
}

func TestBatch_handledAfterItsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[[]string]
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 3, Wait: time.Second}, collect(&got)))
		began := time.Now()
		w.publish(orders("a")...)
		time.Sleep(600 * time.Millisecond)
		w.publish(orders("b")...)
		w.idle()
		require.Equal(t, time.Second, time.Since(began), "of the first, not of the last")
		require.Equal(t, [][]string{{"a", "b"}}, got.all())
	})
}

func TestBatch_ofOneAndDefaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[[]string]
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 1}, collect(&got)))
		w.publish(orders("a", "b")...)
		w.idle()
		require.Equal(t, [][]string{{"a"}, {"b"}}, got.all())
	})
	h := handlers.Batch("ledger", handlers.BatchSize{}, func(context.Context, []orderPaid) error { return nil })
	require.Equal(t, 100, h.Concurrency)
	h = handlers.Batch("ledger", handlers.BatchSize{Max: 50}, func(context.Context, []orderPaid) error { return nil }, handlers.Concurrency(100))
	require.Equal(t, 100, h.Concurrency)
}

func TestBatch_doesNotWaitWhenTheBusStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[[]string]
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 100, Wait: time.Hour}, collect(&got), handlers.Timeout(-1)))
		w.publish(orders("a", "b")...)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, w.bus.Close(t.Context()))
		require.Less(t, time.Since(began), time.Second)
		require.Equal(t, [][]string{{"a", "b"}}, got.all())
		require.EqualValues(t, 2, w.stats("ledger").Handled)
	})
}

func TestBatch_batchErrorFailsItsEventsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[[]string]
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 3, Wait: time.Second}, func(_ context.Context, events []orderPaid) error {
			got.add(idsOf(events))
			failed := handlers.BatchError{}
			for i, e := range events {
				switch {
				case e.OrderID == "bad":
					failed[i] = bus.Permanent(errBroken)
				case e.OrderID == "again" && len(got.all()) == 1:
					failed[i] = errBroken
				}
			}
			return failed
		}))
		w.publish(orders("good", "bad", "again")...)
		w.idle()
		require.Equal(t, [][]string{{"again", "bad", "good"}, {"again"}}, got.all())
		require.EqualValues(t, 2, w.stats("ledger").Handled)
		require.Equal(t, "the handler is broken", w.poisoned("ledger").Fault.Text)
		require.JSONEq(t, `{"order_id":"bad","cents":0}`, string(w.poisoned("ledger").Message.Payload))
	})
	require.EqualError(t, handlers.BatchError{0: errBroken, 4: errBroken}, "2 events of the batch failed")
}

func TestBatch_errorOrPanicFailsTheWholeBatch(t *testing.T) {
	for name, fail := range map[string]func() error{
		"an error":                func() error { return errBroken },
		"a batch error in a wrap": func() error { return fmt.Errorf("all: %w", handlers.BatchError{0: errBroken}) },
		"a panic":                 func() error { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got box[[]string]
				w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 3, Wait: time.Second}, func(_ context.Context, events []orderPaid) error {
					got.add(idsOf(events))
					if slices.Contains(idsOf(events), "first") {
						return fail()
					}
					return nil
				}, handlers.Retry(bus.OneTry())))
				w.publish(orders("first", "second", "third")...)
				w.idle()
				w.publish(orders("a", "b", "c")...)
				w.idle()
				require.Equal(t, [][]string{{"first", "second", "third"}, {"a", "b", "c"}}, got.all())
				require.EqualValues(t, 3, w.stats("ledger").Poisoned)
				require.EqualValues(t, 3, w.stats("ledger").Handled)
			})
		})
	}
}

func TestBatch_concurrentBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[[]string]
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 2, Wait: time.Hour}, func(_ context.Context, events []orderPaid) error {
			time.Sleep(time.Minute / 4)
			got.add(idsOf(events))
			return nil
		}, handlers.Concurrency(4)))
		began := time.Now()
		w.publish(orders("a", "b", "c", "d")...)
		w.idle()
		require.Equal(t, time.Minute/4, time.Since(began))
		require.Len(t, got.all(), 2)
	})
}

// A panic is a bug and no outage, for every event of its batch.
func TestBatch_eachEventOfABatchThatPanicsFailsWithThePanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 3, Wait: time.Second}, func(context.Context, []orderPaid) error {
			panic("boom")
		}, handlers.Retry(bus.OneTry())))
		w.publish(orders("a", "b", "c")...)
		w.idle()
		all, err := w.bus.Transport().PoisonQueue("shop.ledger").List(t.Context(), "", 10)
		require.NoError(t, err)
		require.Len(t, all, 3)
		for _, m := range all {
			require.Equal(t, "panic: boom", m.Fault.Text)
			require.Contains(t, m.Fault.Stack, "batch_test.go")
		}
	})
}

func TestBatch_thatPanicsDoesNotOpenTheCircuitBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, handlers.Batch("ledger", handlers.BatchSize{Max: 10, Wait: time.Second}, func(context.Context, []orderPaid) error {
			panic("boom")
		}))
		for i := range 40 {
			w.publish(orders(fmt.Sprint(i))...)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		require.Empty(t, w.bus.Health()[0].Degraded)
		w.idle()
	})
}
