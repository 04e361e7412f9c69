package bus

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

func TestDurations_roundUpByAnEighthAtMost(t *testing.T) {
	for _, took := range []time.Duration{
		0, time.Microsecond, 7 * time.Microsecond, 8 * time.Microsecond, 15 * time.Microsecond, 16 * time.Microsecond, 17 * time.Microsecond,
		999 * time.Microsecond, time.Millisecond, 1023 * time.Microsecond, 1024 * time.Microsecond, 77 * time.Millisecond, time.Second, time.Hour,
	} {
		var d durations
		d.add(took)
		all := d.buckets()
		require.Len(t, all, 1)
		require.EqualValues(t, 1, all[0].Count)
		require.Greater(t, all[0].Max, took, took)
		require.LessOrEqual(t, all[0].Max, took+max(took/8, time.Microsecond), took)
	}

	var d durations
	d.add(-time.Second)
	d.add(30 * 24 * time.Hour)
	d.add(30 * 24 * time.Hour)
	require.Equal(t, []driver.DurationBucket{{Max: time.Microsecond, Count: 1}, {Max: (maxMicroseconds + 1) * time.Microsecond, Count: 2}}, d.buckets())

	for us := uint64(1); us <= 1<<20; us++ { // each bucket begins where the one before it ends
		i, before := durationBucket(us), durationBucket(us-1)
		require.True(t, i == before || i == before+1 && durationBound(i) == time.Duration(us)*time.Microsecond, us)
	}
}

// BenchmarkDurations measures what the counts add to a delivery: the time until now, and the bucket.
func BenchmarkDurations(b *testing.B) {
	var d durations
	began := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		d.add(time.Since(began))
	}
}
