package bench_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// The benchmarks of sql_test.go as ratios: the compared systems alternate, so that other load on the machine
// affects both, and medians are reported.
//
//	go test ./bench -run xxx -bench SQLRatio -benchtime 7x -timeout 30m

// sqlRound measures one of two systems once, in messages per second.
type sqlRound func(b *testing.B) float64

// alternate reports the medians of both, and of ours/floor in each round.
func alternate(b *testing.B, ours, floor sqlRound) {
	var o, f, ratio []float64
	for swap := false; b.Loop(); swap = !swap {
		var x, y float64
		if swap {
			y, x = floor(b), ours(b)
		} else {
			x, y = ours(b), floor(b)
		}
		o, f, ratio = append(o, x), append(f, y), append(ratio, x/y)
	}
	b.ReportMetric(median(o), "leat-msg/s")
	b.ReportMetric(median(f), "floor-msg/s")
	b.ReportMetric(median(ratio), "leat/floor")
	b.ReportMetric(0, "ns/op")
}

// perSecond returns the messages per second of do, which handles n.
func perSecond(n int, do func()) float64 {
	began := time.Now()
	do()
	return float64(n) / time.Since(began).Seconds()
}

func BenchmarkSQLRatio(b *testing.B) {
	const insertSlice = `INSERT INTO raw_queue (uuid, headers, payload) SELECT * FROM unnest($1::text[], $2::bytea[], $3::bytea[])`
	ctx := context.Background()
	oneByOne := func(b *testing.B, topics int64) {
		const n, goroutines = 10_000, 8
		w := newSQLWorld(b)
		w.floorTable(b)
		w.fill(b, 1)
		t := w.open(b)
		defer func() { require.NoError(b, t.Close(ctx)) }()
		feed, err := t.Subscribe(ctx, driver.Subscription{Group: "bench.ledger", Topics: []string{"order.paid.*"}, Concurrency: 1})
		require.NoError(b, err)
		require.NoError(b, feed.Close(ctx))
		var turn atomic.Int64
		alternate(b, func(b *testing.B) float64 {
			w.run(b, "TRUNCATE "+w.schema+".leat_messages")
			return perSecond(n, func() {
				shared(n, goroutines, func() {
					topic := fmt.Sprintf("order.paid.v%d", 1+turn.Add(1)%topics)
					if err := t.Publish(ctx, topic, orderMessages(b, 1)...); err != nil {
						b.Error(err)
					}
				})
			})
		}, func(b *testing.B) float64 {
			w.run(b, "TRUNCATE raw_queue")
			return perSecond(n, func() {
				shared(n, goroutines, func() {
					m := orderMessages(b, 1)[0]
					h, _ := json.Marshal(m.Metadata)
					w.run(b, `INSERT INTO raw_queue (uuid, headers, payload) VALUES ($1, $2, $3)`, m.UUID, h, []byte(m.Payload))
				})
			})
		})
	}
	b.Run("publish one by one from 8", func(b *testing.B) { oneByOne(b, 1) })
	b.Run("publish one by one from 8 to 8 topics", func(b *testing.B) { oneByOne(b, 8) })
	b.Run("publish slices of 100", func(b *testing.B) {
		const n = 20_000
		w := newSQLWorld(b)
		w.floorTable(b)
		w.fill(b, 1)
		t := w.open(b)
		defer func() { require.NoError(b, t.Close(ctx)) }()
		alternate(b, func(b *testing.B) float64 {
			w.run(b, "TRUNCATE "+w.schema+".leat_messages")
			return perSecond(n, func() {
				for range n / 100 {
					require.NoError(b, t.Publish(ctx, sqlTopic, orderMessages(b, 100)...))
				}
			})
		}, func(b *testing.B) float64 {
			w.run(b, "TRUNCATE raw_queue")
			return perSecond(n, func() {
				for range n / 100 {
					uuids, headers, payloads := columns(orderMessages(b, 100))
					w.run(b, insertSlice, uuids, headers, payloads)
				}
			})
		})
	})
	b.Run("drain 100000", func(b *testing.B) {
		const n = 100_000
		w := newSQLWorld(b)
		w.floorTable(b)
		alternate(b, func(b *testing.B) float64 { return w.drain(b, n) }, func(b *testing.B) float64 {
			uuids, headers, payloads := columns(orderMessages(b, 1000))
			for range n / 1000 {
				w.run(b, insertSlice, uuids, headers, payloads)
			}
			w.run(b, `VACUUM ANALYZE raw_queue`)
			return perSecond(n, func() {
				for done := 0; done < n; {
					done += w.floorBatch(b)
				}
			})
		})
	})
	b.Run("drain by backlog", func(b *testing.B) {
		w := newSQLWorld(b)
		sizes := []int{10_000, 100_000, 500_000}
		rates := make([][]float64, len(sizes))
		var flat []float64
		for b.Loop() {
			var low, high float64
			for i, n := range sizes {
				r := w.drain(b, n)
				rates[i] = append(rates[i], r)
				if i == 0 || r < low {
					low = r
				}
				high = max(high, r)
			}
			flat = append(flat, low/high)
		}
		b.ReportMetric(median(flat), "slowest/quickest")
		for i, n := range sizes {
			b.ReportMetric(median(rates[i]), fmt.Sprintf("msg/s-of-%d", n))
		}
		b.ReportMetric(0, "ns/op")
	})
}

// drain fills a group with n messages and handles them all through the whole stack.
func (w sqlWorld) drain(b *testing.B, n int) float64 {
	var handled atomic.Int64
	done := make(chan struct{})
	bs := w.bus(b, func(orderPaid) {
		if int(handled.Add(1)) == n {
			close(done)
		}
	})
	w.fill(b, n)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	rate := perSecond(n, func() {
		go func() { ended <- bs.Run(ctx) }()
		<-done
	})
	stop()
	require.NoError(b, <-ended)
	require.NoError(b, bs.Close(context.Background())) // and not only at the end: it would poll
	return rate
}

// shared calls f n times from several goroutines.
func shared(n, goroutines int, f func()) {
	done := make(chan struct{})
	var next atomic.Int64
	for range goroutines {
		go func() {
			for int(next.Add(1)) <= n {
				f()
			}
			done <- struct{}{}
		}()
	}
	for range goroutines {
		<-done
	}
}
