package queue

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/sql/internal/config"
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/sqlconfig"
)

// TestFetcher_claimsMoreForQuickWorkers: workers that handle a message in a millisecond get as many at once as keep them busy
// during a claim, however long a claim takes, and slow ones get no more than a few that they don't ask for.
func TestFetcher_claimsMoreForQuickWorkers(t *testing.T) {
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		for _, claim := range []time.Duration{time.Millisecond, 3 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 90 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s/%s", order, claim), func(t *testing.T) {
				require.Greater(t, prefetchWith(t, order, claim, time.Millisecond), 3*int(claim/time.Millisecond))
				require.LessOrEqual(t, prefetchWith(t, order, claim, 10*time.Second), 4)
			})
		}
	}
}

// prefetchWith returns the prefetch after 50 claims that take a time each, with ten workers that take a time for each message.
func prefetchWith(t *testing.T, order driver.Order, claim, handler time.Duration) (prefetch int) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		const workers = 10
		cfg, err := config.Complete(sqlconfig.Config{})
		require.NoError(t, err)
		shared := &core{DB: &database.DB{Statements: &database.Statements{Config: cfg}}}
		f := &fetcher{receiver: &receiver{
			consumer: newConsumer(1, group{order: order}, subscriber{}),
			core:     shared,
			buffer:   make(chan *Delivery, cfg.Prefetch+workers),
			ctx:      ctx,
		}}
		f.settlements = newSettlements(shared, f.consumer)
		var wg sync.WaitGroup
		for i := range workers {
			own := handler + time.Duration(i)*handler/workers // so that they are not all free at once
			wg.Go(func() {
				for {
					if _, err := f.Next(ctx); err != nil {
						return
					}
					select {
					case <-time.After(own):
					case <-ctx.Done():
					}
					f.settlements.finished.Add(1)
				}
			})
		}
		for range 50 {
			want := f.demand()
			for want == 0 {
				<-f.signal
				want = f.demand()
			}
			began := time.Now()
			time.Sleep(claim)
			f.claimed(began, want, want)
			for range want {
				f.pushed.Add(1)
				f.buffer <- new(Delivery)
			}
		}
		prefetch = f.prefetch
		stop()
		wg.Wait()
	})
	return prefetch
}

// TestFetcher_asksForFewLargeMessages: a claim asks for no more messages than there is room for, if they are as large as the last ones.
func TestFetcher_asksForFewLargeMessages(t *testing.T) {
	t.Parallel()
	s, _ := pgxStore(t)
	_, f := keyedFeed(t, s, driver.Unordered)
	f.buffer = make(chan *Delivery, 1000)
	f.prefetch = 500
	f.waiting.Store(2)
	require.Equal(t, 502, f.demand())
	f.size = f.core.Config.PrefetchBytes / 4
	require.Equal(t, 5, f.demand())
	f.size = 2 * f.core.Config.PrefetchBytes
	require.Equal(t, 1, f.demand())
	f.bundle = 1000 // of a relay
	require.Equal(t, 1, f.demand())
}
