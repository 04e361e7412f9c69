//go:build unix

package amqp_test

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/amqp"
)

// TestDelays_areNeverShort is about what a busy machine can't change: how late messages come is measured
// below.
func TestDelays_areNeverShort(t *testing.T) {
	broker := sharedBroker(t)
	measureDelays(t, broker, 400, 20*time.Millisecond, 3*time.Second, func(*amqp.Transport) (from, to time.Time) { return from, to })
}

// TestDelays_moveOnWhenTheQueueWasAway ends the group's queue while a message becomes due for it. The broker tries again when it
// has waited for dead_letter_worker_publisher_confirm_timeout.
func TestDelays_moveOnWhenTheQueueWasAway(t *testing.T) {
	const delay = 5 * time.Second // a shorter one stays in the process
	b := ownBroker(t)
	transport := open(t, b.url())
	defer closeAll(t, transport)
	s := driver.Subscription{Group: unique("ledger"), Topics: []string{unique("order.paid.v1")}, Concurrency: 1, Delays: []time.Duration{delay}}
	s.Known = s.Topics
	receiver := subscribe(t, transport, s)
	require.NoError(t, transport.Publish(t.Context(), s.Topics[0], newMessage(s.Topics[0], "one")))
	server := "{'%2F_" + s.Group + "', node()}"
	restart := func() { require.Equal(t, "ok", b.eval(t, "ra:restart_server(quorum_queues, "+server+").")) }
	var began time.Time
	attempts := 1
	for waits := false; !waits; attempts++ { // again if the machine pauses until it is due
		d := next(t, receiver)
		began = time.Now()
		require.NoError(t, d.Settler.Redeliver(delay))
		eventually(t, "the message waits", func() bool { return depth(t, b.url(), s.Group+".retry.5s") == 1 || time.Since(began) > delay })
		require.Equal(t, "ok", b.eval(t, "ra:stop_server(quorum_queues, "+server+")."))
		if waits = time.Since(began) < delay; !waits {
			restart()
		}
	}
	eventually(t, "the message was due for some seconds", func() bool { return time.Since(began) > delay+4*time.Second })
	restart()
	again := next(t, receiver)
	t.Logf("late by %s", time.Since(began)-delay)
	require.Equal(t, "one", again.Message.UUID)
	require.Equal(t, attempts, again.Attempt)
	require.NoError(t, again.Settler.Ack())
}

// TestDelays_tenThousandAcrossARestart takes a good minute; LEAT_TEST_LONG=1 asks for it.
func TestDelays_tenThousandAcrossARestart(t *testing.T) {
	if os.Getenv("LEAT_TEST_LONG") == "" {
		t.Skip("set LEAT_TEST_LONG=1 for tests that take minutes")
	}
	b := ownBroker(t)
	late := measureDelays(t, b.url(), 10_000, time.Second, time.Minute, func(transport *amqp.Transport) (from, to time.Time) {
		<-time.After(15 * time.Second)
		from = time.Now()
		b.stop(t)
		b.start(t)
		eventually(t, "the connections are back", func() bool { return transport.Health().Connected })
		return from, time.Now().Add(time.Second) // to catch up
	})
	require.LessOrEqual(t, late, 3*time.Second, "a second of it is rounded up")
}

// TestDelays_manyDueTogether measures how late the last of 30,000 messages is. It takes some minutes; LEAT_TEST_LONG=1 asks for it.
func TestDelays_manyDueTogether(t *testing.T) {
	if os.Getenv("LEAT_TEST_LONG") == "" {
		t.Skip("set LEAT_TEST_LONG=1 for tests that take minutes")
	}
	b := newBroker(t)
	b.start(t)
	t.Cleanup(func() { b.end(syscall.SIGKILL); b.brokerHost.close() })
	eachQueue(t, b.url(), func(t *testing.T, raw string) {
		measureDelays(t, raw, 30_000, 40*time.Second, 40*time.Second+1, func(*amqp.Transport) (from, to time.Time) { return from, to })
	})
}

// measureDelays publishes n messages with random delays. None may come early, none may be lost. It returns
// the error's 99th percentile, without those that were due while the broker was away.
func measureDelays(t *testing.T, broker string, n int, from, to time.Duration, meanwhile func(*amqp.Transport) (from, to time.Time)) (late99 time.Duration) {
	transport := open(t, broker)
	topic := unique("order.paid.v1")
	feed := subscribe(t, transport, driver.Subscription{Group: unique("ledger"), Topics: []string{topic}, Concurrency: 20})
	msgs := make([]*message.Message, n)
	due := make([]time.Time, n)
	now := time.Now()
	for i := range msgs {
		due[i] = now.Add(from + rand.N(to-from))
		msgs[i] = newMessage(topic, strconv.Itoa(i))
		msgs[i].Metadata[driver.HeaderDeliverAt] = due[i].UTC().Format(time.RFC3339Nano)
	}
	require.NoError(t, transport.Publish(t.Context(), topic, msgs...))
	t.Logf("%d published in %s", n, time.Since(now))
	away := make(chan [2]time.Time, 1)
	go func() {
		from, to := meanwhile(transport)
		away <- [2]time.Time{from, to}
	}()

	var mu sync.Mutex
	var late []time.Duration
	var restarted [2]time.Time
	arrived := make(map[string]time.Time)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for {
				d, err := feed.Next(t.Context())
				if err != nil {
					return
				}
				at := time.Now()
				mu.Lock()
				if _, again := arrived[d.Message.UUID]; !again {
					arrived[d.Message.UUID] = at
				}
				done := len(arrived) == n
				mu.Unlock()
				_ = d.Settler.Ack()
				if done {
					go func() { _ = feed.Close(t.Context()) }()
				}
			}
		})
	}
	restarted = <-away
	wg.Wait()
	for i := range n {
		at, ok := arrived[strconv.Itoa(i)]
		require.True(t, ok, "message %d is lost", i)
		require.False(t, at.Before(due[i]), "message %d came %s early", i, due[i].Sub(at))
		if due[i].Before(restarted[0]) || due[i].After(restarted[1]) {
			late = append(late, at.Sub(due[i]))
		}
	}
	slices.Sort(late)
	p := func(q float64) time.Duration { return late[int(q*float64(len(late)-1))] }
	t.Logf("error p50 %s, p99 %s, max %s of %d", p(0.5), p(0.99), p(1), len(late))
	closeAll(t, transport)
	return p(0.99)
}
