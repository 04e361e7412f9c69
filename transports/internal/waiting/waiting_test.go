package waiting_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/waiting"
)

// numbers is a queue of numbers.
type numbers struct {
	mu    sync.Mutex
	ready []int
	calls *waiting.Calls[int]
}

func newNumbers() *numbers {
	n := new(numbers)
	n.calls = waiting.New(&n.mu, func() (int, bool) {
		if len(n.ready) == 0 {
			return 0, false
		}
		first := n.ready[0]
		n.ready = n.ready[1:]
		return first, true
	})
	return n
}

func (n *numbers) add(more ...int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ready = append(n.ready, more...)
	n.calls.Wake()
}

func TestCalls_takeEveryItemOnce(t *testing.T) {
	n := newNumbers()
	const items, callers = 10_000, 8
	var mu sync.Mutex
	seen := make(map[int]int)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for {
				v, err := n.calls.Next(t.Context(), nil)
				if err != nil {
					return
				}
				mu.Lock()
				seen[v]++
				mu.Unlock()
			}
		})
	}
	for i := range items {
		n.add(i)
	}
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) == items }, time.Minute, time.Millisecond)
	n.mu.Lock()
	n.calls.Close()
	n.mu.Unlock()
	wg.Wait()
	for v, times := range seen {
		require.Equal(t, 1, times, v)
	}
}

func TestCalls_aBurstWakesAsManyAsItNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNumbers()
		busy, free := make(chan int, 3), make(chan struct{})
		for range 3 {
			go func() {
				v, err := n.calls.Next(t.Context(), nil)
				if err == nil {
					busy <- v
					<-free
				}
			}()
		}
		synctest.Wait()
		n.add(1, 2, 3)
		synctest.Wait()
		require.Len(t, busy, 3, "a call that is busy with its item does not keep the others waiting")
		close(free)
	})
}

func TestCalls_endWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNumbers()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := n.calls.Next(ctx, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		n.add(1)
		_, err = n.calls.Next(ctx, nil)
		require.ErrorIs(t, err, context.DeadlineExceeded, "it takes nothing out")
		v, err := n.calls.Next(t.Context(), nil)
		require.NoError(t, err)
		require.Equal(t, 1, v)
	})
}

func TestCalls_endWhenClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, done := newNumbers(), make(chan struct{})
		ends := make(chan error, 2)
		for _, c := range []chan struct{}{done, nil} {
			go func() {
				_, err := n.calls.Next(t.Context(), c)
				ends <- err
			}()
		}
		synctest.Wait()
		close(done)
		require.ErrorIs(t, <-ends, driver.ErrClosed)
		n.mu.Lock()
		n.calls.Close()
		n.mu.Unlock()
		require.ErrorIs(t, <-ends, driver.ErrClosed)
		_, err := n.calls.Next(t.Context(), nil)
		require.ErrorIs(t, err, driver.ErrClosed)
	})
}
