package prommetrics_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware/prommetrics"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type orderPaid struct{ ID string }

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }

func TestObserver_countsEveryOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		observer, err := prommetrics.New(registry)
		require.NoError(t, err)
		h := bustest.NewWith(t, bustest.Config{Bus: bus.Config{Observers: []bus.Observer{observer}}},
			handlers.Func("ledger", func(_ context.Context, e orderPaid) error {
				if e.ID == "bad" {
					return bus.Permanent(errors.New("bad"))
				}
				return nil
			}))
		require.NoError(t, prommetrics.Health(registry, h.Bus()))
		h.FailNext("ledger", errors.New("once"))
		h.Publish(orderPaid{"good"})
		h.WaitIdle()
		h.Publish(orderPaid{"bad"})
		h.WaitIdle()
		for range 5 {
			h.FailNext("ledger", errors.New("five times"))
		}
		h.Publish(orderPaid{"late"})
		h.WaitIdle()
		require.ErrorIs(t, h.Bus().Transport().Publish(t.Context(), "nobody.v1", message.NewMessage("id", nil)), bus.ErrUnroutable)

		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP leat_deliveries_total Deliveries, by final outcome.
# TYPE leat_deliveries_total counter
leat_deliveries_total{group="test.ledger",outcome="handled",topic="order.paid.v1"} 2
leat_deliveries_total{group="test.ledger",outcome="poisoned",topic="order.paid.v1"} 1
leat_deliveries_total{group="test.ledger",outcome="redelivered",topic="order.paid.v1"} 2
# HELP leat_in_flight Deliveries in the stack now.
# TYPE leat_in_flight gauge
leat_in_flight{group="test.ledger"} 0
# HELP leat_published_messages_total Messages published, by result: ok, unrouted or error.
# TYPE leat_published_messages_total counter
leat_published_messages_total{result="ok",topic="order.paid.v1"} 3
# HELP leat_transport_blocked 1 while the message system accepts no messages.
# TYPE leat_transport_blocked gauge
leat_transport_blocked{transport="memory"} 0
# HELP leat_transport_connected 1 while the message system can be reached.
# TYPE leat_transport_connected gauge
leat_transport_connected{transport="memory"} 1
# HELP leat_transport_reconnects_total Connections that were lost and made again.
# TYPE leat_transport_reconnects_total counter
leat_transport_reconnects_total{transport="memory"} 0
# HELP leat_transport_unroutable_total Messages published that no group wanted.
# TYPE leat_transport_unroutable_total counter
leat_transport_unroutable_total{transport="memory"} 1
`), "leat_transport_blocked", "leat_transport_connected", "leat_transport_reconnects_total", "leat_transport_unroutable_total", "leat_deliveries_total", "leat_in_flight", "leat_published_messages_total"))
		n, err := testutil.GatherAndCount(registry, "leat_process_duration_seconds", "leat_delivery_lag_seconds", "leat_group_degraded")
		require.NoError(t, err)
		require.Equal(t, 4, n) // three outcomes and one lag; nothing is degraded
	})
}

func TestObserver_boundsForeignTopics(t *testing.T) {
	registry := prometheus.NewRegistry()
	observer, err := prommetrics.New(registry)
	require.NoError(t, err)
	for i := range 10_000 {
		observer.Published(t.Context(), bus.Publication{Topic: fmt.Sprintf("t%d.v1", i)})
	}
	n, err := testutil.GatherAndCount(registry, "leat_published_messages_total")
	require.NoError(t, err)
	require.Equal(t, 501, n)
}

// RabbitMQ passes routing keys on as they are, and Prometheus panics on a label that is no UTF-8.
func TestObserver_takesAnyTopic(t *testing.T) {
	registry := prometheus.NewRegistry()
	observer, err := prommetrics.New(registry)
	require.NoError(t, err)
	for _, topic := range []string{"a.\xff", strings.Repeat("x", 60_000)} {
		observer.Published(t.Context(), bus.Publication{Topic: topic, Messages: make([]*message.Message, 1)})
		d := &bus.Delivery{Delivery: driver.Delivery{Message: message.NewMessage("id", nil), Topic: topic, Group: "g", Attempt: 1}}
		observer.Finished(observer.Started(t.Context(), d), d, bus.Observation{Outcome: bus.Handled})
	}
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP leat_deliveries_total Deliveries, by final outcome.
# TYPE leat_deliveries_total counter
leat_deliveries_total{group="g",outcome="handled",topic="other"} 2
`), "leat_deliveries_total"))
}

// A punctual message has no lag, and one that failed has had its first delivery before.
func TestObserver_measuresTheLagFromWhenAMessageWasDue(t *testing.T) {
	registry := prometheus.NewRegistry()
	observer, err := prommetrics.New(registry)
	require.NoError(t, err)
	now := time.Now()
	msg := message.NewMessage("id", nil)
	msg.Metadata[driver.HeaderTime] = now.Add(-time.Hour).Format(time.RFC3339Nano)
	msg.Metadata[driver.HeaderDeliverAt] = now.Format(time.RFC3339Nano)
	observer.Started(t.Context(), &bus.Delivery{Delivery: driver.Delivery{Message: msg, Group: "g", Attempt: 1}})
	observer.Started(t.Context(), &bus.Delivery{Delivery: driver.Delivery{Message: msg, Group: "g", Attempt: 1, History: driver.History{FailedSince: now}}})
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "leat_delivery_lag_seconds" {
			require.EqualValues(t, 1, f.GetMetric()[0].GetHistogram().GetSampleCount())
			require.Less(t, f.GetMetric()[0].GetHistogram().GetSampleSum(), 1800.0)
			return
		}
	}
	t.Fatal("no lag was measured")
}

func TestNew_registeringTwiceFails(t *testing.T) {
	registry := prometheus.NewRegistry()
	_, err := prommetrics.New(registry)
	require.NoError(t, err)
	_, err = prommetrics.New(registry)
	require.Error(t, err)
}

func TestTopics_ofHandlersKeepTheirLabels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		observer, err := prommetrics.New(registry)
		require.NoError(t, err)
		for i := range 1000 {
			observer.Published(t.Context(), bus.Publication{Topic: fmt.Sprintf("foreign.%d", i)})
		}
		h := bustest.NewWith(t, bustest.Config{Bus: bus.Config{Observers: []bus.Observer{observer}}},
			handlers.Func("ledger", func(context.Context, orderPaid) error { return nil }))
		h.Publish(orderPaid{"1"})
		h.WaitIdle()
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP leat_deliveries_total Deliveries, by final outcome.
# TYPE leat_deliveries_total counter
leat_deliveries_total{group="test.ledger",outcome="handled",topic="order.paid.v1"} 1
`), "leat_deliveries_total"))
	})
}

// histogram returns the count and the sum of a histogram without regard to its labels.
func histogram(t *testing.T, registry *prometheus.Registry, name string) (count uint64, sum float64) {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				count += m.GetHistogram().GetSampleCount()
				sum += m.GetHistogram().GetSampleSum()
			}
		}
	}
	return count, sum
}

// A handler takes 10 ms, fails twice and panics once before it succeeds, and between the tries its worker waits for more
// than a second.
func TestProcessDuration_isThatOfTheTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		observer, err := prommetrics.New(registry, prommetrics.WithOTelNames("rabbitmq"))
		require.NoError(t, err)
		tries := 0
		h := bustest.NewWith(t, bustest.Config{Bus: bus.Config{Observers: []bus.Observer{observer}}},
			handlers.Func("ledger", func(context.Context, orderPaid) error {
				time.Sleep(10 * time.Millisecond)
				switch tries++; tries {
				case 1, 2:
					return errors.New("fails")
				case 3:
					panic("fails")
				default:
					return nil
				}
			}))
		require.NoError(t, prommetrics.Health(registry, h.Bus()))
		h.Publish(orderPaid{"1"})
		h.WaitIdle()
		for _, name := range []string{"leat_process_duration_seconds", "messaging_process_duration_seconds"} {
			count, sum := histogram(t, registry, name)
			require.EqualValues(t, 1, count, name)
			require.InDelta(t, 0.04, sum, 1e-6, name)
		}
		require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP event_processed_total Deliveries of all groups, by event type and final outcome.
# TYPE event_processed_total counter
event_processed_total{status="handled",type="order.paid.v1"} 1
# HELP leat_dedup_faults_total Calls of the dedup store that failed.
# TYPE leat_dedup_faults_total counter
leat_dedup_faults_total{group="test.ledger"} 0
# HELP leat_observer_panics_total Panics of observers.
# TYPE leat_observer_panics_total counter
leat_observer_panics_total 0
# HELP leat_panics_total Panics of handlers and of steps.
# TYPE leat_panics_total counter
leat_panics_total{group="test.ledger"} 1
# HELP leat_retries_total Tries in process that followed a failed one, without a new delivery.
# TYPE leat_retries_total counter
leat_retries_total{group="test.ledger"} 3
# HELP messaging_client_consumed_messages_total Number of messages that were delivered.
# TYPE messaging_client_consumed_messages_total counter
messaging_client_consumed_messages_total{error_type="",messaging_consumer_group_name="test.ledger",messaging_destination_name="order.paid.v1",messaging_operation_name="process",messaging_system="rabbitmq"} 1
# HELP messaging_client_sent_messages_total Number of messages that were attempted to be sent.
# TYPE messaging_client_sent_messages_total counter
messaging_client_sent_messages_total{error_type="",messaging_destination_name="order.paid.v1",messaging_operation_name="send",messaging_system="rabbitmq"} 1
`), "event_processed_total", "leat_dedup_faults_total", "leat_observer_panics_total", "leat_panics_total", "leat_retries_total",
			"messaging_client_consumed_messages_total", "messaging_client_sent_messages_total"))
	})
}

// A snoozed message is due again at the end of its snooze.
func TestLag_ofASnoozedMessageCountsFromTheEndOfItsSnooze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		observer, err := prommetrics.New(registry)
		require.NoError(t, err)
		snoozed := false
		h := bustest.NewWith(t, bustest.Config{Bus: bus.Config{Observers: []bus.Observer{observer}}},
			handlers.Func("ledger", func(context.Context, orderPaid) error {
				if !snoozed {
					snoozed = true
					return bus.Snooze(time.Hour)
				}
				return nil
			}))
		h.Publish(orderPaid{"1"})
		h.WaitIdle()
		count, sum := histogram(t, registry, "leat_delivery_lag_seconds")
		require.EqualValues(t, 2, count)
		require.InDelta(t, 0, sum, 0.01)
	})
}

func TestTypesFromForeignInput_stayBounded(t *testing.T) {
	registry := prometheus.NewRegistry()
	observer, err := prommetrics.New(registry)
	require.NoError(t, err)
	for i := range 10_000 {
		msg := message.NewMessage("id", nil)
		msg.Metadata[driver.HeaderType] = fmt.Sprintf("t%d.v1", i)
		d := &bus.Delivery{Delivery: driver.Delivery{Message: msg, Topic: "foreign", Group: "g", Attempt: 1}}
		observer.Finished(observer.Started(t.Context(), d), d, bus.Observation{Outcome: bus.Handled})
	}
	n, err := testutil.GatherAndCount(registry, "event_processed_total")
	require.NoError(t, err)
	require.Equal(t, 500, n) // 499, because the topic has one label, and "other"
}
