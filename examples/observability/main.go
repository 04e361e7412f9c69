// Command observability is a small shop with metrics, traces and the console. It takes an order each second, and one in
// twenty can't be paid:
//
//	go run .                  prints the URLs; nothing else is needed
//	docker compose up         in another terminal: Prometheus with leat's alert rules, Grafana with its dashboard, Jaeger
//
// Traces are sent to OTEL_EXPORTER_OTLP_ENDPOINT if that is set, for Jaeger http://localhost:4318. LEAT_URL is the URL of
// the transport, by default memory://.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/oteltrace"
	"github.com/leatbus/leat/middleware/prommetrics"
)

// OrderPlaced is published for each order.
type OrderPlaced struct {
	Order    int    `json:"order"`
	Customer string `json:"customer"`
}

// EventType returns the event's name and version on the wire.
func (OrderPlaced) EventType() (name string, version int) { return "order.placed", 1 }

// PartitionKey keeps the orders of a customer in order.
func (e OrderPlaced) PartitionKey() string { return e.Customer }

// OrderPaid is published when an order is paid.
type OrderPaid OrderPlaced

// EventType returns the event's name and version on the wire.
func (OrderPaid) EventType() (name string, version int) { return "order.paid", 1 }

var errNoFunds = errors.New("the card has no funds")

// charge takes some time, and sometimes fails permanently. The event that it returns is published.
func charge(ctx context.Context, e OrderPlaced) (OrderPaid, error) {
	select {
	case <-time.After(rand.N(40 * time.Millisecond)):
	case <-ctx.Done():
		return OrderPaid{}, context.Cause(ctx)
	}
	if e.Order%20 == 13 {
		return OrderPaid{}, bus.Permanent(errNoFunds)
	}
	return OrderPaid(e), nil
}

// send fails at the first try and succeeds at the second.
func send(context.Context, OrderPaid) error {
	if rand.N(5) == 0 {
		return errors.New("the mail server is busy")
	}
	return nil
}

// newTracerProvider returns a provider that sends spans to OTEL_EXPORTER_OTLP_ENDPOINT, or drops them if it is not set.
func newTracerProvider(lc fx.Lifecycle) (*trace.TracerProvider, error) {
	var options []trace.TracerProviderOption
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" {
		exporter, err := otlptracehttp.New(context.Background())
		if err != nil {
			return nil, err
		}
		options = append(options, trace.WithBatcher(exporter))
	}
	provider := trace.NewTracerProvider(options...)
	lc.Append(fx.StopHook(provider.Shutdown))
	return provider, nil
}

// serve serves metrics and the console.
func serve(lc fx.Lifecycle, registry *prometheus.Registry, b *bus.Bus, stack middleware.Stack) {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/console/", http.StripPrefix("/console", console.New(console.Config{
		Bus: b, Stack: stack, Actions: true, TraceURL: "http://localhost:16686/trace/{trace_id}", // Jaeger
	})))
	mux.Handle("/", http.RedirectHandler("/console/", http.StatusFound))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	lc.Append(fx.StartStopHook(func(ctx context.Context) error {
		address := os.Getenv("ADDRESS")
		if address == "" {
			address = "127.0.0.1:8080" // this machine only, because the console can change queues
		}
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return err
		}
		fmt.Printf("console  http://%s/console/\nmetrics  http://%s/metrics\n", listener.Addr(), listener.Addr())
		go func() { _ = server.Serve(listener) }()
		return nil
	}, server.Shutdown))
}

// takeOrders publishes an order each second, until the application stops.
func takeOrders(lc fx.Lifecycle, b *bus.Bus, log *slog.Logger) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	lc.Append(fx.StartStopHook(func() {
		go func() {
			defer close(ended)
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			for i := 1; ; i++ {
				order := OrderPlaced{Order: i, Customer: fmt.Sprint("customer-", i%7)}
				if err := b.Publish(ctx, order); err != nil && ctx.Err() == nil {
					log.Error("order not taken", "error", err)
				}
				select {
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
			}
		}()
	}, func() {
		cancel()
		<-ended
	}))
}

// options returns the application.
func options() fx.Option {
	return fx.Options(
		fxmodule.Module,
		fx.Provide(
			slog.Default,
			newTracerProvider,
			func() *prometheus.Registry {
				registry := prometheus.NewRegistry()
				registry.MustRegister(collectors.NewGoCollector())
				return registry
			},
			func(r *prometheus.Registry) prometheus.Registerer { return r },
		),
		fxmodule.HandleFunc(func() bus.Handler {
			return handlers.Reply("charge", charge, handlers.OrderedByKey(), handlers.Concurrency(10))
		}),
		fxmodule.Handle("send-receipt", send),
		fxmodule.Observe(func(r prometheus.Registerer) (bus.Observer, error) { return prommetrics.New(r) }),
		fxmodule.Observe(func(p *trace.TracerProvider) bus.Observer { return oteltrace.New(p) }),
		fx.Invoke(prommetrics.Health),
		fx.Invoke(func(r prometheus.Registerer, b *bus.Bus) error { return prommetrics.Groups(r, b) }),
		fx.Invoke(serve, takeOrders),
	)
}

func main() { fxmodule.Main(options()) }
