package bench_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/message"
	wm "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/prommetrics"
	"github.com/leatbus/leat/transports/memory"
)

// orderPaid is an event of a common size: about 200 bytes of JSON.
type orderPaid struct {
	OrderID    string    `json:"order_id"`
	PaymentID  string    `json:"payment_id"`
	CustomerID string    `json:"customer_id"`
	Cents      int64     `json:"cents"`
	Currency   string    `json:"currency"`
	PaidAt     time.Time `json:"paid_at"`
	Version    int       `json:"version"`
	Sent       int64     `json:"sent"`
}

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }

func newOrder(i int) orderPaid {
	return orderPaid{
		OrderID: fmt.Sprintf("order-%08d", i), PaymentID: "pay-7f3c1a90", CustomerID: "customer-42",
		Cents: 1999, Currency: "EUR", PaidAt: time.Unix(1_780_000_000, 0).UTC(), Version: 1, Sent: time.Now().UnixNano(),
	}
}

// system is one of the compared systems. It publishes, and counts the messages of its handler.
type system struct {
	publish func(orderPaid)
	handled atomic.Int64
	latency []time.Duration // filled by handlers while measuring latency, each its own place
	keep    atomic.Bool
	kept    atomic.Int64
}

func (s *system) handle(e orderPaid) {
	i := s.handled.Add(1) - 1
	if s.keep.Load() {
		s.latency[i] = time.Duration(time.Now().UnixNano() - e.Sent)
		s.kept.Add(1)
	}
}

// newLeat returns leat with the whole standard stack with Prometheus metrics on the memory transport.
func newLeat(tb testing.TB) *system { return newLeatWith(tb, bus.BreakerPolicy{}) }

func newLeatWith(tb testing.TB, breaker bus.BreakerPolicy) *system {
	s := &system{}
	observer, err := prommetrics.New(prometheus.NewRegistry())
	require.NoError(tb, err)
	b, err := bus.New(memory.New(memory.Config{Queue: 4096}), bus.Config{
		Service: "bench", Stack: middleware.Standard(middleware.Config{}), Observers: []bus.Observer{observer},
		Breaker: breaker,
	})
	require.NoError(tb, err)
	require.NoError(tb, b.Handle(handlers.Func("ledger", func(_ context.Context, e orderPaid) error {
		s.handle(e)
		return nil
	})))
	go func() { _ = b.Run(context.Background()) }()
	<-b.Running()
	tb.Cleanup(func() { require.NoError(tb, b.Close(context.Background())) })
	s.publish = func(e orderPaid) {
		if err := b.Publish(context.Background(), e); err != nil {
			panic(err)
		}
	}
	return s
}

// newFloor returns a channel with JSON on both sides, and nothing else.
func newFloor(tb testing.TB) *system {
	s := &system{}
	payloads := make(chan []byte, 1024)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for payload := range payloads {
			var e orderPaid
			if err := json.Unmarshal(payload, &e); err != nil {
				panic(err)
			}
			s.handle(e)
		}
	}()
	tb.Cleanup(func() {
		close(payloads)
		<-done
	})
	s.publish = func(e orderPaid) {
		payload, err := json.Marshal(e)
		if err != nil {
			panic(err)
		}
		payloads <- payload
	}
	return s
}

// newWatermill returns Watermill's router over its Go channels with the corresponding middleware:
// metrics, correlation, poison queue, dedup, retry, timeout, recoverer, JSON.
func newWatermill(tb testing.TB) *system {
	s := &system{}
	logger := watermill.NopLogger{}
	pubsub := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 1024}, logger)
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	require.NoError(tb, err)
	builder := metrics.NewPrometheusMetricsBuilder(prometheus.NewRegistry(), "bench", "")
	builder.AddPrometheusRouterMetrics(router)
	publisher, err := builder.DecoratePublisher(pubsub)
	require.NoError(tb, err)
	poison, err := wm.PoisonQueue(pubsub, "poison")
	require.NoError(tb, err)
	dedup := &wm.Deduplicator{KeyFactory: func(msg *message.Message) (string, error) { return msg.UUID, nil }, Timeout: time.Minute}
	router.AddMiddleware(wm.CorrelationID, poison, dedup.Middleware,
		wm.Retry{MaxRetries: 3, InitialInterval: 50 * time.Millisecond, Multiplier: 2, MaxInterval: time.Second}.Middleware,
		wm.Timeout(30*time.Second), wm.Recoverer)
	router.AddConsumerHandler("ledger", "order.paid.v1", pubsub, func(msg *message.Message) error {
		var e orderPaid
		if err := json.Unmarshal(msg.Payload, &e); err != nil {
			return err
		}
		s.handle(e)
		return nil
	})
	go func() { _ = router.Run(context.Background()) }()
	<-router.Running()
	tb.Cleanup(func() { require.NoError(tb, router.Close()) })
	s.publish = func(e orderPaid) {
		payload, err := json.Marshal(e)
		if err != nil {
			panic(err)
		}
		msg := message.NewMessage(watermill.NewUUID(), payload)
		wm.SetCorrelationID(msg.UUID, msg)
		if err := publisher.Publish("order.paid.v1", msg); err != nil {
			panic(err)
		}
	}
	return s
}

// inFlight limits the published messages that are not handled, for systems that have no limit.
const inFlight = 4096

// throughput publishes n events, waits until they are handled, and returns the time for each.
func (s *system) throughput(n int) time.Duration {
	began, base := time.Now(), s.handled.Load()
	for i := range n {
		for int64(i)-(s.handled.Load()-base) > inFlight {
			time.Sleep(20 * time.Microsecond)
		}
		s.publish(newOrder(i))
	}
	for s.handled.Load() < base+int64(n) {
		time.Sleep(50 * time.Microsecond)
	}
	return time.Since(began) / time.Duration(n)
}

// p99 publishes at a rate for a while and returns the 99th percentile from publish to handler.
func (s *system) p99(rate int, during time.Duration) time.Duration {
	n := int(during.Seconds() * float64(rate))
	s.handled.Store(0)
	s.kept.Store(0)
	s.latency = make([]time.Duration, n)
	s.keep.Store(true)
	defer s.keep.Store(false)
	began := time.Now()
	for i := range n {
		if wait := time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))); wait > 0 {
			time.Sleep(wait)
		}
		s.publish(newOrder(i))
	}
	for s.kept.Load() < int64(n) {
		time.Sleep(50 * time.Microsecond)
	}
	slices.Sort(s.latency)
	return s.latency[n*99/100]
}

// BenchmarkPublishToHandler measures one event from Publish through the whole stack to a typed handler.
func BenchmarkPublishToHandler(b *testing.B) {
	compare(b, "ns/event", func(s *system) float64 { return float64(s.throughput(10_000)) })
}

// BenchmarkBreaker measures the cost of the circuit breaker without failures, from Publish to the handler. on/off
// is the ratio of the rates. The order of the two alternates.
func BenchmarkBreaker(b *testing.B) {
	systems := []*system{newLeatWith(b, bus.BreakerPolicy{}), newLeatWith(b, bus.NoBreaker())}
	var took [2][]float64
	var ratios []float64
	for first := 0; b.Loop(); first = 1 - first {
		for _, i := range []int{first, 1 - first} {
			took[i] = append(took[i], float64(systems[i].throughput(10_000)))
		}
		ratios = append(ratios, took[1][len(ratios)]/took[0][len(ratios)])
	}
	b.ReportMetric(median(took[0]), "on-ns/event")
	b.ReportMetric(median(took[1]), "off-ns/event")
	b.ReportMetric(median(ratios), "on/off")
}

// BenchmarkLatencyAt10k measures the 99th percentile from Publish to handler at 10,000 events a second.
func BenchmarkLatencyAt10k(b *testing.B) {
	compare(b, "p99-µs", func(s *system) float64 { return float64(s.p99(10_000, time.Second)) / 1e3 })
}

// compare measures leat, Watermill and the floor in alternating rounds, and reports medians: of the
// figures, and of each round's ratios.
func compare(b *testing.B, unit string, measure func(*system) float64) {
	leat, peer, floor := newLeat(b), newWatermill(b), newFloor(b)
	var ours, theirs, bare, overPeer, overFloor []float64
	for b.Loop() {
		l, w, f := measure(leat), measure(peer), measure(floor)
		ours, theirs, bare = append(ours, l), append(theirs, w), append(bare, f)
		overPeer, overFloor = append(overPeer, w/l), append(overFloor, l/f)
	}
	b.ReportMetric(median(ours), "leat-"+unit)
	b.ReportMetric(median(theirs), "watermill-"+unit)
	b.ReportMetric(median(bare), "floor-"+unit)
	b.ReportMetric(median(overPeer), "watermill/leat")
	b.ReportMetric(median(overFloor), "leat/floor")
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
