package middleware_test

import (
	"context"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/storetest"
)

func TestMemoryStore_contract(t *testing.T) {
	storetest.Run(t, func(t *testing.T, test func(*testing.T, middleware.Store, func(time.Duration))) {
		synctest.Test(t, func(t *testing.T) { test(t, middleware.NewMemoryStore(0), time.Sleep) })
	})
}

func finish(tb testing.TB, s middleware.Store, key string, keep time.Duration) {
	tb.Helper()
	c, err := s.Claim(context.Background(), key, time.Minute)
	if err != nil || c.State != middleware.Claimed {
		tb.Fatalf("claim %s: %+v, %v", key, c, err)
	}
	if err := s.Done(context.Background(), c, keep); err != nil {
		tb.Fatal(err)
	}
}

func known(tb testing.TB, s middleware.Store, key string) bool {
	tb.Helper()
	c, err := s.Claim(context.Background(), key, time.Minute)
	if err != nil {
		tb.Fatal(err)
	}
	if c.State == middleware.Claimed {
		if err := s.Release(context.Background(), c); err != nil {
			tb.Fatal(err)
		}
	}
	return c.State == middleware.Done
}

func TestMemoryStore_fullKeepsTheLatestHalf(t *testing.T) {
	const capacity = 16_000
	s := middleware.NewMemoryStore(capacity)
	for i := range 10 * capacity {
		finish(t, s, strconv.Itoa(i), time.Hour)
	}
	// Keys spread over the shards evenly, but not exactly.
	for i := 10*capacity - capacity/2*8/10; i < 10*capacity; i++ {
		if !known(t, s, strconv.Itoa(i)) {
			t.Fatalf("mark %d of %d is forgotten", i, 10*capacity)
		}
	}
	total := 0
	for i := range 10 * capacity {
		if known(t, s, strconv.Itoa(i)) {
			total++
		}
	}
	if total > capacity {
		t.Errorf("%d marks are kept, %d is the capacity", total, capacity)
	}
}

func TestMemoryStore_rotationKeepsClaims(t *testing.T) {
	s := middleware.NewMemoryStore(1000)
	c, err := s.Claim(t.Context(), "slow", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		finish(t, s, strconv.Itoa(i), time.Hour)
	}
	if other, _ := s.Claim(t.Context(), "slow", time.Minute); other.State != middleware.InProgress {
		t.Errorf("state is %d, want in progress", other.State)
	}
	if err := s.Done(t.Context(), c, time.Hour); err != nil || !known(t, s, "slow") {
		t.Errorf("done: %v, known: %t", err, known(t, s, "slow"))
	}
}

func TestMemoryStore_dropsMarksAfterIdleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := middleware.NewMemoryStore(0)
		finish(t, s, "old", time.Hour)
		time.Sleep(time.Hour - time.Second)
		finish(t, s, "young", time.Hour) // its generation is the old one's
		if !known(t, s, "old") {
			t.Error("a mark is forgotten within its window")
		}
		time.Sleep(time.Hour - time.Second)
		if !known(t, s, "young") {
			t.Error("a mark is forgotten within its window")
		}
		time.Sleep(3 * time.Hour)
		if known(t, s, "old") || known(t, s, "young") {
			t.Error("a mark is kept for more than twice its window")
		}
	})
}

func TestMemoryStore_fullIsSmall(t *testing.T) {
	const capacity = 1 << 18
	before := heap()
	s := middleware.NewMemoryStore(capacity)
	for i := range 3 * capacity {
		finish(t, s, strconv.Itoa(i), time.Hour)
	}
	used := heap() - before
	perMark := float64(used) / capacity
	t.Logf("a store for %d marks takes %.1f MiB, %.1f bytes each", capacity, float64(used)/(1<<20), perMark)
	if perMark > 16 {
		t.Errorf("a mark takes %.1f bytes, documented are up to 15", perMark)
	}
	runtime.KeepAlive(s)
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

var keys atomic.Uint64

func BenchmarkClaimAndDone(b *testing.B) {
	for _, parallel := range []int{0, 8} {
		b.Run("parallel="+strconv.Itoa(parallel), func(b *testing.B) {
			s := middleware.NewMemoryStore(0)
			b.ReportAllocs()
			if parallel == 0 {
				for b.Loop() {
					finish(b, s, key(), time.Hour)
				}
				return
			}
			b.SetParallelism(parallel)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					finish(b, s, key(), time.Hour)
				}
			})
		})
	}
}

func key() string {
	return "leat:dedup:shop.book-payment:id:5:/shop:0190b5a2-" + strconv.FormatUint(keys.Add(1), 16)
}
