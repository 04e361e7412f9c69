package bus

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// Durations returns how long deliveries were in the stack, without the waits between tries, by the handler's name: every
// delivery, no matter how it ended. The buckets are sorted, those that count nothing are left out, and the counts only grow.
// The first call begins to count; a bus that nobody asks keeps no counts. Durations does not block and may be called
// concurrently.
func (b *Bus) Durations() map[string][]driver.DurationBucket {
	all := make(map[string][]driver.DurationBucket)
	b.groups.each(func(g *group) {
		d := g.counts.durations.Load()
		if d == nil {
			d = new(durations)
			g.counts.durations.Store(d)
		}
		all[g.handler.Name] = d.buckets()
	})
	return all
}

// durations is a histogram of microseconds with eight buckets for each power of two, so that a bucket's width is at most an
// eighth of its lower bound. Durations under 8 µs have a bucket for each microsecond, and those over an hour share the last.
type durations [durationBuckets]atomic.Uint64

const (
	durationBits    = 3         // 1<<durationBits buckets for each power of two
	maxMicroseconds = 1<<32 - 1 // 71 minutes
	durationBuckets = (32 - durationBits + 1) << durationBits
)

// durationBucket returns the index of the bucket of a number of microseconds.
func durationBucket(us uint64) int {
	shift := max(bits.Len64(us)-durationBits-1, 0)
	return shift<<durationBits + int(us>>shift) //nolint:gosec // us>>shift is below 16
}

func (d *durations) add(took time.Duration) {
	us := min(max(took.Microseconds(), 0), maxMicroseconds)
	d[durationBucket(uint64(us))].Add(1)
}

func (d *durations) buckets() []driver.DurationBucket {
	var all []driver.DurationBucket
	for i := range d {
		if n := d[i].Load(); n > 0 {
			all = append(all, driver.DurationBucket{Max: durationBound(i + 1), Count: n})
		}
	}
	return all
}

// durationBound returns the lower bound of a bucket, which is the upper bound of the one before it.
func durationBound(i int) time.Duration {
	const n = 1 << durationBits
	shift := max(i/n-1, 0)
	return time.Duration(i-shift*n) << shift * time.Microsecond
}
