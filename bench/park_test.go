package bench_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// The cost of one parked key of a thousand for the others:
//
//	go test ./bench -run xxx -bench Park -benchtime 5x

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
