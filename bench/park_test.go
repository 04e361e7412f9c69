package bench_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// The cost of one parked key of a thousand for the others:
//
//	go test ./bench -run xxx -bench Park$ -benchtime 5x
//
// And the cost of a key with 50,000 parked messages, or a million with LEAT_TEST_LONG=1, on RabbitMQ:
//
//	go test ./bench -run xxx -bench ParkMany -benchtime 1x -v

const (
	parkKeys = 1000
	parkEach = 100
)

// stockMoved has a key.
type stockMoved struct {
	Article string `json:"article"`
	N       int    `json:"n"`
}

func (stockMoved) EventType() (string, int) { return "stock.moved", 1 }
func (e stockMoved) PartitionKey() string   { return e.Article }

var errPark = errors.New("it is to be parked")

// orderedDrain publishes messages of a thousand keys, of which the first bad ones are poisoned with
// their first message, and returns how many of the others' a second are handled. A durable transport
// has them all before the first is handled.
func orderedDrain(b *testing.B, transport driver.Transport, bad int) (perSecond float64) {
	articles := make([]string, parkKeys)
	parked := make(map[string]bool, bad)
	for k := range articles {
		articles[k] = fmt.Sprintf("article-%04d", k)
		parked[articles[k]] = k < bad
	}
	bs, err := bus.New(transport, bus.Config{
		Service: "bench", Stack: middleware.Standard(middleware.Config{}), Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(b, err)
	defer func() { require.NoError(b, bs.Close(context.Background())) }()
	want := int64((parkKeys - bad) * parkEach)
	var handled atomic.Int64
	done := make(chan time.Time, 1)
	require.NoError(b, bs.Handle(handlers.Func("count", func(_ context.Context, e stockMoved) error {
		if parked[e.Article] {
			return bus.Permanent(errPark)
		}
		if handled.Add(1) == want {
			done <- time.Now()
		}
		return nil
	}, handlers.OrderedByKey(), handlers.Concurrency(100))))
	publish := func() {
		for n := range parkEach {
			events := make([]bus.Event, parkKeys)
			for k, article := range articles {
				events[k] = stockMoved{article, n}
			}
			require.NoError(b, bs.PublishAll(context.Background(), events))
		}
	}
	durable := transport.Capabilities().Durable
	if durable {
		publish()
	}
	began := time.Now()
	go func() { _ = bs.Run(context.Background()) }()
	if !durable {
		<-bs.Running()
		publish()
	}
	return float64(want) / (<-done).Sub(began).Seconds()
}

// BenchmarkPark measures without and with a poisoned key in alternating rounds, and reports medians.
func BenchmarkPark(b *testing.B) {
	for name, open := range map[string]func(b *testing.B) driver.Transport{
		"memory":   func(*testing.B) driver.Transport { return memory.New(memory.Config{}) },
		"postgres": func(b *testing.B) driver.Transport { return newSQLWorld(b).open(b) },
	} {
		b.Run(name, func(b *testing.B) {
			var without, with, ratios []float64
			for swap := false; b.Loop(); swap = !swap {
				var a, p float64
				if swap {
					p, a = orderedDrain(b, open(b), 1), orderedDrain(b, open(b), 0)
				} else {
					a, p = orderedDrain(b, open(b), 0), orderedDrain(b, open(b), 1)
				}
				without, with, ratios = append(without, a), append(with, p), append(ratios, p/a)
			}
			b.ReportMetric(median(without), "msg/s")
			b.ReportMetric(median(with), "parked-msg/s")
			b.ReportMetric(median(ratios), "parked/without")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkParkMany parks messages of one key behind a poisoned one, measures what that costs the messages of other keys and the
// process, and replays the poisoned message. All messages of the key must then be handled in order.
func BenchmarkParkMany(b *testing.B) {
	many := 50_000
	if os.Getenv("LEAT_TEST_LONG") != "" {
		many = 1_000_000
	}
	for b.Loop() {
		transport := newAMQPWorldAt(b, testenv.ManagedRabbitMQ(b)).open()
		bs, err := bus.New(transport, bus.Config{
			Service: fmt.Sprintf("bench%08x", rand.Uint32()), Stack: middleware.Standard(middleware.Config{}), Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(b, err)
		var mended atomic.Bool
		var next, others atomic.Int64
		require.NoError(b, bs.Handle(handlers.Func("count", func(_ context.Context, e stockMoved) error {
			switch {
			case e.Article != "parked":
				others.Add(1)
			case !mended.Load():
				return bus.Permanent(errPark)
			case e.N != int(next.Load()):
				b.Errorf("message %d is handled, and %d is due", e.N, next.Load())
			default:
				next.Add(1)
			}
			return nil
		}, handlers.OrderedByKey(), handlers.Concurrency(100))))
		go func() { _ = bs.Run(context.Background()) }()
		<-bs.Running()
		publish := func(n int, event func(int) stockMoved) {
			const batch = 1000
			for first := 0; first < n; first += batch {
				events := make([]bus.Event, 0, batch)
				for i := first; i < min(first+batch, n); i++ {
					events = append(events, event(i))
				}
				require.NoError(b, bs.PublishAll(b.Context(), events))
			}
		}
		drain := func() (perSecond float64) {
			const n = 20_000
			var rounds []float64
			for range 5 {
				others.Store(0)
				began := time.Now()
				publish(n, func(i int) stockMoved { return stockMoved{fmt.Sprint("article-", i%parkKeys), i} })
				for others.Load() < n {
					time.Sleep(time.Millisecond)
				}
				rounds = append(rounds, n/time.Since(began).Seconds())
			}
			b.Logf("other keys: %.0f/s", rounds)
			return median(rounds)
		}
		heap := func() float64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return float64(m.HeapAlloc) / (1 << 20)
		}
		before, free := drain(), heap()

		began := time.Now()
		publish(many, func(i int) stockMoved { return stockMoved{"parked", i} })
		b.Logf("published in %v", time.Since(began))
		group := bs.GroupName("count")
		parked := func() int {
			groups, err := transport.Groups(b.Context())
			require.NoError(b, err)
			for _, g := range groups {
				if g.Name == group {
					return g.Parked
				}
			}
			return 0
		}
		for parked() < many-1 {
			time.Sleep(time.Second)
		}
		b.ReportMetric(float64(many)/time.Since(began).Seconds(), "parked-msg/s")
		with, full := drain(), heap()
		b.ReportMetric(with/before, "others/before")
		b.ReportMetric(full-free, "MiB-more")

		mended.Store(true)
		queue := transport.PoisonQueue(group)
		dead, err := queue.List(b.Context(), "", 2)
		require.NoError(b, err)
		require.Len(b, dead, 1)
		began = time.Now()
		_, err = queue.Replay(b.Context(), dead[0].ID)
		require.NoError(b, err)
		for next.Load() < int64(many) && !b.Failed() {
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(float64(many)/time.Since(began).Seconds(), "replayed-msg/s")
		require.NoError(b, bs.Close(context.Background()))
	}
}
