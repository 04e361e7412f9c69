package bench_test

import (
	"context"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/oteltrace"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports/memory"
)

// BenchmarkObserve measures what metrics, tracing and the counts of a console add to a message in memory, from its publish to the end of its handler:
// the same messages go over a bus without observers and over one with them, in turns. What is added is
// the difference of their quickest rounds, which the load of the machine disturbs least.
func BenchmarkObserve(b *testing.B) {
	never := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	defer func() { _ = never.Shutdown(context.Background()) }()
	ctx, span := never.Tracer("bench").Start(context.Background(), "request")
	defer span.End()
	metrics := func() bus.Observer {
		o, err := prommetrics.New(prometheus.NewRegistry())
		require.NoError(b, err)
		return o
	}
	for _, c := range []struct {
		name      string
		ctx       context.Context
		observers []bus.Observer
		begin     func(*bus.Bus)
	}{
		{"Nothing", context.Background(), nil, nil},
		{"Durations", context.Background(), nil, func(over *bus.Bus) { over.Durations() }},
		{"Metrics", context.Background(), []bus.Observer{metrics()}, nil},
		{"MetricsAndTracesNotSampled", ctx, []bus.Observer{metrics(), oteltrace.New(never)}, nil},
		{"MetricsAndTracesNotSampledWithoutSpan", context.Background(), []bus.Observer{metrics(), oteltrace.New(never)}, nil},
		{"MetricsAndTracesSampled", context.Background(), []bus.Observer{metrics(), oteltrace.New(sampling(b))}, nil},
	} {
		b.Run(c.name, func(b *testing.B) { observe(c.ctx, b, c.observers, c.begin) })
	}
}

// sampling returns a provider whose spans are recorded and dropped.
func sampling(b *testing.B) trace.TracerProvider {
	p := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(discard{}))
	b.Cleanup(func() { _ = p.Shutdown(context.Background()) })
	return p
}

type discard struct{}

func (discard) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (discard) OnEnd(sdktrace.ReadOnlySpan)                     {}
func (discard) Shutdown(context.Context) error                  { return nil }
func (discard) ForceFlush(context.Context) error                { return nil }

func observe(ctx context.Context, b *testing.B, observers []bus.Observer, begin func(*bus.Bus)) {
	const round = 2000
	plain, observed := observedBus(b, nil, nil), observedBus(b, observers, begin)
	without, with := math.Inf(1), math.Inf(1)
	var allocs float64
	rounds := 0
	for b.Loop() {
		took, allocsWithout := plain(ctx, round)
		without = min(without, took/round)
		took, allocsWith := observed(ctx, round)
		with = min(with, took/round)
		allocs += float64(allocsWith-allocsWithout) / round
		rounds++
	}
	b.ReportMetric(without, "ns/msg-without")
	b.ReportMetric(with-without, "ns/msg-added")
	b.ReportMetric(allocs/float64(rounds), "allocs/msg-added")
	b.ReportMetric(0, "ns/op")
}

// observedBus returns a function that publishes n messages, one after the other, waits for their handler, and returns how long that
// took in nanoseconds, and the allocations.
func observedBus(b *testing.B, observers []bus.Observer, begin func(*bus.Bus)) func(ctx context.Context, n int) (nanoseconds float64, allocs int64) {
	over, err := bus.New(memory.New(memory.Config{}), bus.Config{
		Service: "bench", Stack: middleware.Standard(middleware.Config{}), Observers: observers,
	})
	require.NoError(b, err)
	require.NoError(b, over.Handle(handlers.Func("ledger", func(context.Context, orderPaid) error { return nil })))
	go func() { _ = over.Run(context.Background()) }()
	<-over.Running()
	if begin != nil {
		begin(over)
	}
	b.Cleanup(func() { require.NoError(b, over.Close(context.Background())) })
	return func(ctx context.Context, n int) (float64, int64) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		began := time.Now()
		for i := range n {
			require.NoError(b, over.Publish(ctx, newOrder(i)))
		}
		require.NoError(b, over.Idle(context.Background()))
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		return float64(took), int64(after.Mallocs - before.Mallocs)
	}
}
