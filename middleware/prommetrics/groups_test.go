package prommetrics_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports/memory"
)

type accountOpened struct{ Account, Kind string }

func (accountOpened) EventType() (string, int) { return "account.opened", 1 }
func (e accountOpened) PartitionKey() string   { return e.Account }

func TestGroups_countsWhatWaitsInTheGroupsOfTheBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := bustest.New(t, handlers.Func("ledger", func(_ context.Context, e accountOpened) error {
			switch e.Kind {
			case "bad":
				return bus.Permanent(errors.New("bad"))
			case "late":
				return bus.Snooze(time.Hour)
			}
			return nil
		}, handlers.OrderedByKey()))
		other, err := h.Bus().Transport().Subscribe(t.Context(), driver.Subscription{Group: "other.mail", Topics: []string{"account.opened.v1"}, Concurrency: 1})
		require.NoError(t, err)
		defer func() { require.NoError(t, other.Close(context.Background())) }()
		registry := prometheus.NewRegistry()
		require.NoError(t, prommetrics.Groups(registry, h.Bus()))
		for _, e := range []accountOpened{{"a", "bad"}, {"a", "good"}, {"a", "good"}, {"b", "late"}} {
			h.Publish(e)
		}
		synctest.Wait()
		time.Sleep(10 * time.Second)
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP leat_group_consumers Processes or connections that consume.
# TYPE leat_group_consumers gauge
leat_group_consumers{group="test.ledger"} 1
# HELP leat_group_delayed_messages Messages that wait for a time.
# TYPE leat_group_delayed_messages gauge
leat_group_delayed_messages{group="test.ledger"} 1
# HELP leat_group_in_flight_messages Messages that are handed out and not settled, to any process.
# TYPE leat_group_in_flight_messages gauge
leat_group_in_flight_messages{group="test.ledger"} 0
# HELP leat_group_oldest_seconds How long the oldest message has been in the group.
# TYPE leat_group_oldest_seconds gauge
leat_group_oldest_seconds{group="test.ledger"} 10
# HELP leat_group_parked_keys Keys that a poisoned message holds back.
# TYPE leat_group_parked_keys gauge
leat_group_parked_keys{group="test.ledger"} 1
# HELP leat_group_parked_messages Messages that wait behind a poisoned one of their key.
# TYPE leat_group_parked_messages gauge
leat_group_parked_messages{group="test.ledger"} 2
# HELP leat_group_poisoned_messages Messages in the poison queue.
# TYPE leat_group_poisoned_messages gauge
leat_group_poisoned_messages{group="test.ledger"} 1
# HELP leat_group_waiting_messages Messages that could be handed out now.
# TYPE leat_group_waiting_messages gauge
leat_group_waiting_messages{group="test.ledger"} 0
# HELP leat_groups_age_seconds How old the values of leat_group_* from the message system are.
# TYPE leat_groups_age_seconds gauge
leat_groups_age_seconds 0
# HELP leat_groups_refresh_errors_total How often the message system could not be asked for them.
# TYPE leat_groups_refresh_errors_total counter
leat_groups_refresh_errors_total 0
`)))
	})
}

// inspected is a transport whose inspection the test controls.
type inspected struct {
	bus.Transport
	driver.Inspector
	calls  atomic.Int64
	answer func(context.Context) ([]driver.GroupInfo, error)
}

func (i *inspected) Groups(ctx context.Context) ([]driver.GroupInfo, error) {
	i.calls.Add(1)
	return i.answer(ctx)
}

func gauges(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, f := range families {
		m := f.GetMetric()[0]
		values[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	return values
}

func TestGroups_asksSeldomAndNeverMakesAScrapeWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := func(ctx context.Context) ([]driver.GroupInfo, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		counts := func(context.Context) ([]driver.GroupInfo, error) {
			return []driver.GroupInfo{{
				Name: "test.ledger", Waiting: 7, Delayed: driver.Unknown, Parked: 3, InFlight: driver.Unknown, Poisoned: 1,
			}, {Name: "other.ledger", Waiting: 9}}, nil
		}
		i := &inspected{Transport: memory.New(memory.Config{}), answer: counts}
		b, err := bus.New(i, bus.Config{Service: "test"})
		require.NoError(t, err)
		defer func() { require.NoError(t, b.Close(context.Background())) }()
		require.NoError(t, b.Handle(handlers.Func("ledger", func(context.Context, orderPaid) error { return nil })))
		registry := prometheus.NewRegistry()
		require.NoError(t, prommetrics.Groups(registry, b))

		want := map[string]float64{
			"leat_group_waiting_messages": 7, "leat_group_parked_messages": 3, "leat_group_poisoned_messages": 1,
			"leat_group_consumers": 0, "leat_groups_age_seconds": 0, "leat_groups_refresh_errors_total": 0,
		}
		require.Equal(t, want, gauges(t, registry), "what the message system can't count is missing")
		time.Sleep(14 * time.Second)
		want["leat_groups_age_seconds"] = 14
		require.Equal(t, want, gauges(t, registry))
		require.EqualValues(t, 1, i.calls.Load())

		i.answer = hangs
		time.Sleep(2 * time.Second)
		began := time.Now()
		want["leat_groups_age_seconds"] = 16.05
		require.Equal(t, want, gauges(t, registry), "the last values, with their age")
		require.Equal(t, 50*time.Millisecond, time.Since(began))
		gauges(t, registry)
		require.EqualValues(t, 2, i.calls.Load(), "one question at a time")
		time.Sleep(9 * time.Second)
		synctest.Wait()

		i.answer = func(context.Context) ([]driver.GroupInfo, error) { panic("broken") }
		time.Sleep(10 * time.Second)
		require.InDelta(t, 2, gauges(t, registry)["leat_groups_refresh_errors_total"], 0)
		i.answer = counts
		time.Sleep(15 * time.Second)
		require.Zero(t, gauges(t, registry)["leat_groups_age_seconds"])
	})
}

func TestGroups_refusesATransportWithoutInspection(t *testing.T) {
	b, err := bus.New(struct{ bus.Transport }{memory.New(memory.Config{})}, bus.Config{Service: "test"})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close(context.Background())) }()
	require.ErrorIs(t, prommetrics.Groups(prometheus.NewRegistry(), b), bus.ErrUnsupported)
}
