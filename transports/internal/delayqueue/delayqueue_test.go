package delayqueue_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/transports/internal/delayqueue"
)

func TestQueue_releasesItemsWhenTheyAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		released := make(map[time.Duration]time.Duration)
		start := time.Now()
		q := delayqueue.New(&mu, func(wait time.Duration) { released[wait] = time.Since(start) })
		mu.Lock()
		for range 1000 {
			wait := time.Duration(rand.Int64N(int64(time.Hour)))
			q.Push(wait, start.Add(wait))
		}
		q.Push(-time.Second, start.Add(-time.Second)) // it was due before
		n := q.Len()
		require.Len(t, slices.Collect(q.All()), n)
		mu.Unlock()
		time.Sleep(time.Hour)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, released, n)
		for wait, at := range released {
			require.Equal(t, max(wait, 0), at)
		}
		require.Zero(t, q.Len())
	})
}

func TestQueue_releasesNothingOnceClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		released := 0
		q := delayqueue.New(&mu, func(int) { released++ })
		mu.Lock()
		q.Push(1, time.Now().Add(time.Second))
		q.Close()
		q.Push(2, time.Now().Add(time.Millisecond))
		mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Zero(t, released)
		require.Equal(t, 2, q.Len())
	})
}
