package bus_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
)

func TestRetryPolicy_default(t *testing.T) {
	var p bus.RetryPolicy
	require.NoError(t, p.Validate())
	require.Equal(t, 8, p.Tries())
	require.Equal(t, "50ms 250ms 1s | 5s 30s 5m 30m ±10%", p.String())
	for attempt, first := range map[int]int{0: 1, 1: 1, 2: 5, 3: 6, 4: 7, 5: 8, 6: 8, 100: 8} {
		require.Equal(t, first, p.FirstTry(attempt), "attempt %d", attempt)
	}
}

func TestRetryPolicy_string(t *testing.T) {
	for want, p := range map[string]bus.RetryPolicy{
		"one try":           bus.OneTry(),
		"1s 1s ±20%":        {Delays: []time.Duration{time.Second, time.Second}, Jitter: 0.2},
		"1m 1h 1h30m 1m30s": {Delays: []time.Duration{time.Minute, time.Hour, 90 * time.Minute, 90 * time.Second}, Jitter: -1},
		"10ms 20ms":         {Delays: []time.Duration{10 * time.Millisecond, 20 * time.Millisecond}, InProcess: -1, Jitter: -1},
		"5s 10ms | 5s":      {Delays: []time.Duration{5 * time.Second, 10 * time.Millisecond, 5 * time.Second}, Jitter: -1},
	} {
		require.Equal(t, want, p.String())
	}
}

func TestRetryPolicy_oneTryIsOneTry(t *testing.T) {
	p := bus.OneTry()
	require.Equal(t, 1, p.Tries())
	require.Equal(t, 1, p.FirstTry(7))
}

func TestRetryPolicy_rejectsInvalidPolicies(t *testing.T) {
	for want, p := range map[string]bus.RetryPolicy{
		"delay 2 is -1s":    {Delays: []time.Duration{0, -time.Second}},
		"a share below 1":   {Jitter: 1},
		"can't be negative": {CrashLimit: -1},
	} {
		require.ErrorContains(t, p.Validate(), want)
	}
}

// TestRetryPolicy_makesEveryTryOnce plays policies through: each delivery begins at FirstTry and goes on
// while delays are short.
func TestRetryPolicy_makesEveryTryOnce(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		p := bus.RetryPolicy{Delays: make([]time.Duration, random.IntN(9)), InProcess: []time.Duration{0, -1, time.Minute}[random.IntN(3)]}
		for i := range p.Delays {
			p.Delays[i] = []time.Duration{0, time.Millisecond, time.Second, 5 * time.Second, time.Hour}[random.IntN(5)]
		}
		inProcess := p.WithDefaults().InProcess
		tries := 0
		for attempt := 1; tries < p.Tries(); attempt++ {
			try := p.FirstTry(attempt)
			require.Equal(t, tries+1, try, "%v: delivery %d goes on where the last one ended", p, attempt)
			for tries = try; tries < p.Tries() && p.Delays[tries-1] <= inProcess; {
				tries++
			}
		}
		require.Equal(t, p.Tries(), tries, "%v", p)
		require.Equal(t, len(p.Delays)+1, p.Tries())
	}
}

func TestSpread_staysWithinTheJitter(t *testing.T) {
	const d = 10 * time.Second
	low, high := d, d
	for range 10_000 {
		got := bus.RetryPolicy{}.Spread(d)
		require.InDelta(t, d, got, float64(time.Second))
		low, high = min(low, got), max(high, got)
	}
	require.Less(t, low, d-800*time.Millisecond, "it spreads downwards")
	require.Greater(t, high, d+800*time.Millisecond, "it spreads upwards")
	require.Equal(t, d, bus.RetryPolicy{Jitter: -1}.Spread(d), "negative means none")
}
