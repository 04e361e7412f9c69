package prommetrics_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/prommetrics"
)

type ticketSold struct{}

func (ticketSold) EventType() (name string, version int) { return "ticket.sold", 1 }

// The observer counts what the stack sees: it is one of the standard stack's observers. With fx it is fxmodule.Observe(prommetrics.New).
func ExampleNew() {
	registry := prometheus.NewRegistry()
	observer, err := prommetrics.New(registry)
	if err != nil {
		fmt.Println(err)
		return
	}
	h := bustest.NewWith(&testing.T{}, bustest.Config{Bus: bus.Config{Observers: []bus.Observer{observer}}},
		handlers.Func("print", func(context.Context, ticketSold) error { return nil }, handlers.Timeout(middleware.DefaultTimeout)))
	h.Publish(ticketSold{})
	h.WaitIdle()
	_ = h.Bus().Close(context.Background())

	families, err := registry.Gather()
	for _, family := range families {
		if family.GetName() == "leat_deliveries_total" {
			fmt.Println(family.GetMetric()[0].GetCounter().GetValue(), "delivery")
		}
	}
	fmt.Println(err)
	// Output:
	// 1 delivery
	// <nil>
}

// Health shows what b.Health(), b.TransportHealth() and b.Stats() say, each time the registry is scraped.
func ExampleHealth() {
	registry := prometheus.NewRegistry()
	h := bustest.New(&testing.T{}, handlers.Func("print", func(context.Context, ticketSold) error { return nil }))
	if err := prommetrics.Health(registry, h.Bus()); err != nil {
		fmt.Println(err)
		return
	}
	families, err := registry.Gather()
	for _, family := range families {
		fmt.Println(family.GetName())
	}
	fmt.Println(err)
	_ = h.Bus().Close(context.Background())
	// Output:
	// leat_dedup_faults_total
	// leat_observer_panics_total
	// leat_panics_total
	// leat_retries_total
	// leat_transport_blocked
	// leat_transport_connected
	// leat_transport_reconnects_total
	// leat_transport_unroutable_total
	// <nil>
}
