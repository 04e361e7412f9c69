package console

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

func TestSampler_asksSeldomAndForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, names := 0, []string{"a", "b"}
		s := newSampler(func(context.Context) (sample, error) {
			asked++
			taken := sample{at: time.Now(), service: &admin.Description{}}
			for _, name := range names {
				taken.groups = append(taken.groups, driver.GroupInfo{Name: name, Waiting: asked})
				taken.service.Groups = append(taken.service.Groups, admin.GroupDescription{Group: name, Counts: admin.GroupCounts{Handled: uint64(10 * time.Now().Unix())}})
			}
			return taken, nil
		})
		look := func() (points map[string][]point) {
			require.NoError(t, s.now(t.Context(), func(_ sample, all map[string][]point) { points = all }))
			return points
		}
		for range 10 {
			look()
		}
		require.Equal(t, 1, asked)
		for range 4 * 3600 { // four hours, with four looks a second
			time.Sleep(250 * time.Millisecond)
			look()
		}
		require.InDelta(t, 2880, asked, 1000)
		points := look()["a"]
		require.Len(t, points, maxPoints)
		require.InDelta(t, 10, points[maxPoints-1].perSecond, 0.5)
		names = []string{"b"}
		time.Sleep(pointEvery)
		require.NotContains(t, look(), "a")
	})
}

func TestSampler_notesAgesAndDurations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := driver.GroupInfo{Name: "a"}
		here := &admin.Description{Groups: []admin.GroupDescription{{Group: "a"}}}
		durations := func(handled uint64, all ...driver.DurationBucket) {
			here = &admin.Description{Groups: []admin.GroupDescription{{Group: "a", Counts: admin.GroupCounts{Handled: handled}, Durations: all}}}
		}
		s := newSampler(func(context.Context) (sample, error) {
			return sample{at: time.Now(), groups: []driver.GroupInfo{g}, service: here}, nil
		})
		next := func() (p point) {
			time.Sleep(pointEvery)
			require.NoError(t, s.now(t.Context(), func(_ sample, all map[string][]point) { p = all["a"][len(all["a"])-1] }))
			return p
		}
		fast, slow := time.Millisecond, time.Second
		p := next()
		require.Zero(t, p.oldest, "nothing waits")
		require.Negative(t, p.perSecond)

		g.Waiting, g.Oldest = 1, time.Now()
		durations(100, driver.DurationBucket{Max: fast, Count: 98}, driver.DurationBucket{Max: slow, Count: 2})
		p = next()
		require.InDelta(t, 5, p.oldest, 0.001)
		require.InDelta(t, 20, p.perSecond, 0.001)
		require.InDelta(t, 1e3, p.p50, 0.001)
		require.InDelta(t, 1e6, p.p99, 0.001)

		g.Oldest = time.Time{}
		durations(200, driver.DurationBucket{Max: fast, Count: 197}, driver.DurationBucket{Max: slow, Count: 3})
		p = next()
		require.Negative(t, p.oldest, "something waits, and nobody knows for how long")
		require.InDelta(t, 1e3, p.p99, 0.001, "only those since the point before count")

		p = next()
		require.Zero(t, p.perSecond)
		require.Negative(t, p.p50, "there was no delivery")

		durations(5, driver.DurationBucket{Max: fast, Count: 5})
		p = next()
		require.Negative(t, p.perSecond, "the process has begun anew")
		require.Negative(t, p.p50)
		durations(10, driver.DurationBucket{Max: fast, Count: 4}, driver.DurationBucket{Max: slow, Count: 900})
		require.Negative(t, next().p99)

		here = nil
		require.Negative(t, next().perSecond)
	})
}

func TestLatency_isOfTheLastMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		count := admin.GroupDescription{Group: "a"}
		known := true
		s := newSampler(func(context.Context) (sample, error) {
			taken := sample{at: time.Now(), groups: []driver.GroupInfo{{Name: "a"}}}
			if known {
				taken.service = &admin.Description{Groups: []admin.GroupDescription{count}}
			}
			return taken, nil
		})
		deliver := func(took time.Duration, n uint64) {
			count.Counts.Handled += n
			count.Durations = append(slices.Clone(count.Durations), driver.DurationBucket{Max: took, Count: n})
		}
		look := func(after time.Duration) (latency []string) {
			time.Sleep(after)
			require.NoError(t, s.now(t.Context(), func(now sample, points map[string][]point) { latency = viewsOf(now, points)[0].Latency() }))
			return latency
		}
		watch := func(span time.Duration) (latency []string) {
			for range span / pointEvery {
				latency = look(pointEvery)
			}
			return latency
		}
		deliver(time.Hour, 1_000)
		require.Empty(t, look(0), "these were before anybody looked")
		require.Empty(t, look(pointEvery))

		deliver(time.Millisecond, 97)
		deliver(80*time.Millisecond, 3)
		require.Equal(t, []string{"1.0 ms", "80 ms"}, look(2*freshFor), "not only at each point")
		require.Equal(t, []string{"1.0 ms", "80 ms"}, watch(4*time.Minute), "although nothing was delivered since")
		deliver(2*time.Second, 1_000)
		require.Equal(t, []string{"2.0 s", "2.0 s"}, watch(time.Minute))
		require.Equal(t, []string{"2.0 s", "2.0 s"}, watch(4*time.Minute))
		require.Empty(t, watch(6*time.Minute), "all were more than ten minutes ago")

		for i := range time.Duration(10) { // each is shown for five minutes at least
			deliver(i+time.Minute, 1)
			for range 5*time.Minute/pointEvery - 1 {
				require.Equal(t, []string{"1 min 00 s", "1 min 00 s"}, look(pointEvery))
			}
		}
		require.Empty(t, watch(11*time.Minute))

		deliver(3*time.Second, 1)
		require.Equal(t, []string{"3.0 s", "3.0 s"}, look(pointEvery))
		known = false
		require.Empty(t, look(pointEvery))
		known = true
		require.Equal(t, []string{"3.0 s", "3.0 s"}, look(pointEvery))

		count = admin.GroupDescription{Group: "a"} // the process begins anew
		deliver(time.Millisecond, 1)
		require.Equal(t, []string{"1.0 ms", "1.0 ms"}, look(pointEvery))

		deliver(time.Minute, 1)
		require.Empty(t, look(2*maxSpan), "nobody looked for longer than that")
	})
}

func TestSampler_waitsWithinTheContext(t *testing.T) {
	s := newSampler(func(ctx context.Context) (sample, error) {
		<-ctx.Done()
		return sample{}, context.Cause(ctx)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	ended := make(chan error, 2)
	for range 2 {
		go func() { ended <- s.now(ctx, func(sample, map[string][]point) {}) }()
	}
	require.ErrorIs(t, <-ended, context.DeadlineExceeded)
	require.ErrorIs(t, <-ended, context.DeadlineExceeded)
}
