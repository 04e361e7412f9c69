package memory_test

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

// group subscribes an unordered group to topics.
func group(t *testing.T, transport driver.Transport, name string, topics ...string) driver.Receiver {
	t.Helper()
	feed, err := transport.Subscribe(t.Context(), driver.Subscription{Group: name, Topics: topics, Concurrency: 1})
	require.NoError(t, err)
	return feed
}

// send publishes payloads of these sizes and fails for what takes longer than a second.
func send(ctx context.Context, transport driver.Transport, topic string, sizes ...int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for i, size := range sizes {
		if err := transport.Publish(ctx, topic, message.NewMessage(fmt.Sprint(i), make([]byte, size))); err != nil {
			return err
		}
	}
	return nil
}

// kilobytes returns a bound of so many messages of 1 KiB.
func kilobytes(n int) memory.Config {
	return memory.Config{Bytes: n * 1800, Logger: slog.New(slog.DiscardHandler)}
}

func TestBounds_areBytesAndNoCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{})
		group(t, transport, "g", "x")
		for range 20_000 {
			require.NoError(t, send(t.Context(), transport, "x", 1000))
		}
		require.NoError(t, transport.Close(t.Context()))
	})
}

// Headers take memory too.
func TestBounds_countHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(kilobytes(10))
		group(t, transport, "g", "x")
		accepted := 0
		for ; accepted < 100; accepted++ {
			msg := message.NewMessage("m", nil)
			msg.Metadata = message.Metadata{"baggage": strings.Repeat("x", 1000)}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := transport.Publish(ctx, "x", msg)
			cancel()
			if err != nil {
				break
			}
		}
		require.Less(t, accepted, 20)
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestBounds_delayedMessagesHoldBackOnlyThoseWhoDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(kilobytes(4))
		feed := group(t, transport, "g", "x")
		delay := func() error {
			msg := message.NewMessage("later", make([]byte, 1000))
			msg.Metadata = message.Metadata{driver.HeaderDeliverAt: time.Now().Add(24 * time.Hour).Format(time.RFC3339Nano)}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return transport.Publish(ctx, "x", msg)
		}
		delayed := 0
		for delay() == nil && delayed < 100 {
			delayed++
		}
		require.Less(t, delayed, 10)
		require.NoError(t, send(t.Context(), transport, "x", 1000), "the handler is idle, and the group has room")
		d, err := feed.Next(t.Context())
		require.NoError(t, err)
		require.NoError(t, d.Settler.Ack())

		for range delayed { // a day later
			d, err := feed.Next(t.Context())
			require.NoError(t, err)
			require.NoError(t, d.Settler.Ack())
		}
		require.NoError(t, delay())
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestBounds_parkedMessagesHoldBackOnlyTheirKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(kilobytes(4))
		feed, queue := ledger(t, transport)
		publish(t, transport, "a", "first")
		poison(t, take(t, feed, "first"))
		park := func() error {
			msg := message.NewMessage("parked", make([]byte, 1000))
			msg.Metadata = message.Metadata{driver.HeaderPartitionKey: "a"}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return transport.Publish(ctx, topic, msg)
		}
		parked := 0
		for park() == nil && parked < 100 {
			parked++
		}
		require.Less(t, parked, 10)
		require.Equal(t, parked, list(t, queue)[0].Parked)
		publish(t, transport, "b", "b")
		require.NoError(t, take(t, feed, "b").Settler.Ack())

		blocked := make(chan error, 1)
		go func() { blocked <- park() }()
		synctest.Wait()
		_, err := queue.Drop(t.Context(), list(t, queue)[0].ID)
		require.NoError(t, err)
		require.NoError(t, <-blocked, "its key goes on, and the group has room")
		for range parked + 1 {
			require.NoError(t, take(t, feed, "parked").Settler.Ack())
		}
		require.NoError(t, transport.WaitIdle(t.Context()))
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestFullGroup_onePublisherThatGivesUpPassesItsTurnOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(kilobytes(4))
		group(t, transport, "g", "x")
		require.NoError(t, send(t.Context(), transport, "x", 4000))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		go func() { _ = transport.Publish(ctx, "x", message.NewMessage("large", make([]byte, 6000))) }()
		synctest.Wait()
		small := make(chan error, 1)
		go func() { small <- send(t.Context(), transport, "x", 10) }()
		require.NoError(t, <-small, "there is room for it once the large one has given up")
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestFullGroup_publishersThatGiveUpLeaveNoMemoryBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{Queue: 2, Logger: slog.New(slog.DiscardHandler)})
		group(t, transport, "g", "x")
		require.NoError(t, send(t.Context(), transport, "x", 1, 1))
		msg := message.NewMessage("b", nil)
		giveUp := func() {
			ctx, cancel := context.WithCancel(t.Context())
			for range 500 {
				go func() { _ = transport.Publish(ctx, "x", msg) }()
			}
			synctest.Wait() // all of them are blocked
			cancel()
			synctest.Wait()
		}
		giveUp()
		before := heap()
		for range 100 {
			giveUp()
		}
		require.Less(t, heap()-before, int64(1<<20))
		require.NoError(t, transport.Close(t.Context()))
	})
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestFullGroup_publishersThatWaitHoldNothingInOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{Queue: 4, Logger: slog.New(slog.DiscardHandler)})
		idle := group(t, transport, "idle", "x", "y")
		full := group(t, transport, "full", "x", "z")
		require.NoError(t, send(t.Context(), transport, "z", 1, 1, 1, 1))
		waiting, cancel := context.WithCancel(t.Context())
		defer cancel()
		var publishers sync.WaitGroup
		for range 4 {
			publishers.Go(func() { _ = transport.Publish(waiting, "x", message.NewMessage("m", nil)) })
		}
		synctest.Wait()
		groups, err := transport.Groups(t.Context())
		require.NoError(t, err)
		require.Zero(t, groups[1].Waiting, "%s", groups[1].Name)
		now, later := idle.(interface{ Backlog() (now, later int) }).Backlog()
		require.Zero(t, now+later)
		require.NoError(t, send(t.Context(), transport, "y", 1, 1, 1, 1))

		for range 4 { // both have room for one after the other
			for _, feed := range []driver.Receiver{full, idle} {
				d, err := feed.Next(t.Context())
				require.NoError(t, err)
				require.NoError(t, d.Settler.Ack())
			}
		}
		publishers.Wait()
		require.NoError(t, transport.Close(t.Context()))
	})
}

// Two groups whose handlers feed each other would stand still.
func TestFullGroup_handlersGoBeforeOthersAlsoWhenTheyWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{Queue: 2, Logger: slog.New(slog.DiscardHandler)})
		feed := group(t, transport, "g", "x")
		require.NoError(t, send(t.Context(), transport, "x", 1, 1))
		first, err := feed.Next(t.Context())
		require.NoError(t, err)
		handling := driver.ContextWithDelivery(t.Context(), first)
		for range 14 {
			require.NoError(t, send(handling, transport, "x", 1))
		}
		waiting, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = transport.Publish(waiting, "x", message.NewMessage("outsider", nil)) }()
		synctest.Wait()
		handler := make(chan error, 1)
		go func() { handler <- send(handling, transport, "x", 1) }()
		synctest.Wait()
		d, err := feed.Next(t.Context())
		require.NoError(t, err)
		require.NoError(t, d.Settler.Ack())
		require.NoError(t, <-handler)
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestFullGroup_isSaidAtOnceAndNotAgainForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines strings.Builder
		transport := memory.New(memory.Config{Queue: 2, Logger: slog.New(slog.NewTextHandler(&lines, nil))})
		feed := group(t, transport, "g", "x")
		for range 20 {
			require.NoError(t, send(t.Context(), transport, "x", 1, 1))
			blocked := make(chan error, 1)
			go func() { blocked <- send(t.Context(), transport, "x", 1) }()
			synctest.Wait()
			for range 3 {
				d, err := feed.Next(t.Context())
				require.NoError(t, err)
				require.NoError(t, d.Settler.Ack())
			}
			require.NoError(t, <-blocked)
		}
		require.Equal(t, 1, strings.Count(lines.String(), "publishers blocked by a full group"), lines.String())
		require.Contains(t, lines.String(), "group=g")
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestClose_noPublishReturnsNilForAMessageThatIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			transport := memory.New(memory.Config{Queue: 2, Logger: slog.New(slog.DiscardHandler)})
			feed := group(t, transport, "g", "x")
			require.NoError(t, send(t.Context(), transport, "x", 1, 1))
			blocked := make(chan error, 1)
			go func() { blocked <- transport.Publish(t.Context(), "x", message.NewMessage("m", nil)) }()
			synctest.Wait()
			d, err := feed.Next(t.Context())
			require.NoError(t, err)
			require.NoError(t, d.Settler.Ack()) // now there is room for it
			require.NoError(t, transport.Close(t.Context()))
			if err := <-blocked; err != nil {
				require.ErrorIs(t, err, driver.ErrClosed)
				continue
			}
			groups, _ := transport.Groups(t.Context())
			require.Equal(t, 2, groups[0].Waiting, "the publisher was faster than Close, and its message is there")
		}
	})
}

func TestPublish_refusesWhatIsNoTopic(t *testing.T) {
	transport := memory.New(memory.Config{})
	feed := group(t, transport, "g", ">")
	for _, topic := range []string{"", "a.\xff", "a..b", "a b", "a.*", strings.Repeat("x", 256)} {
		require.ErrorContains(t, send(t.Context(), transport, topic, 1), "memory: topic", "%q", topic)
	}
	require.NoError(t, send(t.Context(), transport, "a.ü", 1))
	_, err := feed.Next(t.Context())
	require.NoError(t, err)
	require.NoError(t, transport.Close(t.Context()))
}

func TestPoisonQueue_listTakesAnyLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{})
		feed, queue := ledger(t, transport)
		for _, id := range []string{"1", "2"} {
			publish(t, transport, id, id)
			poison(t, take(t, feed, id))
		}
		for limit, want := range map[int]int{-1: 0, 0: 0, 1: 1, math.MaxInt: 2, math.MinInt: 0} {
			all, err := queue.List(t.Context(), "", limit)
			require.NoError(t, err)
			require.Len(t, all, want)
		}
		all, err := queue.List(t.Context(), "1", math.MaxInt)
		require.NoError(t, err)
		require.Len(t, all, 1)
		require.NoError(t, transport.Close(t.Context()))
	})
}

func TestNew_negativeBoundsAreRefused(t *testing.T) {
	for want, cfg := range map[string]memory.Config{
		"memory: Config.Queue is -5":       {Queue: -5},
		"memory: Config.Bytes is -1":       {Bytes: -1},
		"memory: Config.PoisonBytes is -1": {PoisonBytes: -1},
	} {
		transport := memory.New(cfg)
		_, err := transport.Subscribe(t.Context(), driver.Subscription{Group: "g", Topics: []string{"x"}, Concurrency: 1})
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, send(t.Context(), transport, "x", 1), want)
		require.ErrorContains(t, transport.Diagnose(t.Context())[0].Err, want)
		require.ErrorContains(t, transport.Health().Err, want)
		require.NoError(t, transport.Close(t.Context()))
	}
}

// A consumer that handles more at once raises the bound of its group.
func TestFullGroup_aLargerConsumerLetsPublishersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memory.New(memory.Config{Queue: 2, Logger: slog.New(slog.DiscardHandler)})
		group(t, transport, "g", "x")
		require.NoError(t, send(t.Context(), transport, "x", 1, 1))
		blocked := make(chan error, 1)
		go func() { blocked <- send(t.Context(), transport, "x", 1) }()
		synctest.Wait()
		_, err := transport.Subscribe(t.Context(), driver.Subscription{Group: "g", Topics: []string{"x"}, Concurrency: 5})
		require.NoError(t, err)
		require.NoError(t, <-blocked)
		require.NoError(t, transport.Close(t.Context()))
	})
}
