package amqp_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
)

// Idle ordered groups cost a publishing and an ack for each tick. The broker's consumer_timeout, 30 minutes by default, must not end
// between two ticks.
func TestGroups_idleOrderedOnesCostLittle(t *testing.T) {
	for _, groups := range []int{1, 10, 100, 1000} {
		var sum time.Duration
		const samples = 200
		for range samples {
			after := amqp.IdleTickForTest(groups)
			require.GreaterOrEqual(t, after, 20*time.Second)
			require.LessOrEqual(t, after, 15*time.Minute)
			sum += after
		}
		rate := float64(2*groups*samples) / sum.Seconds()
		require.Less(t, rate, 3.0, "requests a second of %d groups", groups)
	}
}

// A process with a thousand groups is soon ready, and asks the broker for little while nothing happens. LEAT_TEST_LONG=1
// measures it, which takes some minutes.
func TestGroups_aThousandOfAProcess(t *testing.T) {
	if os.Getenv("LEAT_TEST_LONG") == "" {
		t.Skip("set LEAT_TEST_LONG=1 to measure a thousand groups")
	}
	broker := sharedBroker(t)
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) {
			eachQueue(t, broker, func(t *testing.T, raw string) { measureGroups(t, raw, order) })
		})
	}
}

func measureGroups(t *testing.T, raw string, order driver.Order) {
	u, err := url.Parse(raw)
	require.NoError(t, err)
	proxy := newSickBroker(t, u.Host)
	u.Host = proxy.listener.Addr().String()
	prefix := unique("many")
	topic := func(i int) string { return fmt.Sprintf("%s.%d", prefix, i) }
	const groups = 1000
	feeds := make([]driver.Receiver, groups)
	began := time.Now()
	subscribeAll := func(transport driver.Transport, what string) {
		began, before := time.Now(), proxy.requests.Load()
		for i := range feeds {
			feeds[i] = subscribe(t, transport, driver.Subscription{Group: topic(i), Topics: []string{topic(i)}, Concurrency: 1, Order: order})
		}
		t.Logf("subscribed %s after %s, with %d requests", what, time.Since(began), proxy.requests.Load()-before)
	}
	first := open(t, u.String())
	subscribeAll(first, "to new groups")
	closeAll(t, first)
	transport := open(t, u.String())
	subscribeAll(transport, "to groups that are there")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var consuming sync.WaitGroup
	handled := make(chan struct{}, groups)
	for i, feed := range feeds {
		publish(t, transport, topic(i), "m")
		consuming.Go(func() {
			for {
				d, err := feed.Next(ctx)
				if err != nil {
					return
				}
				_ = d.Settler.Ack()
				handled <- struct{}{}
			}
		})
	}
	for range groups {
		<-handled
	}
	t.Logf("each group has had a message after %s", time.Since(began))
	const idle = time.Minute
	<-time.After(idle / 2)
	before := proxy.requests.Load()
	<-time.After(idle)
	t.Logf("idle at %.1f requests a second", float64(proxy.requests.Load()-before)/idle.Seconds())
	stop()
	consuming.Wait()
	closeAll(t, transport)
}
