package amqp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/amqp"
)

// faultyFile is a temporary file that calls functions before it writes and reads.
type faultyFile struct {
	amqp.SpillForTest
	write, read func() error
}

func (f faultyFile) WriteAt(p []byte, at int64) (int, error) {
	if err := f.write(); err != nil {
		return 0, err
	}
	return f.SpillForTest.WriteAt(p, at)
}

func (f faultyFile) ReadAt(p []byte, at int64) (int, error) {
	if err := f.read(); err != nil {
		return 0, err
	}
	return f.SpillForTest.ReadAt(p, at)
}

func noFault() error { return nil }

// spilling is a group with messages of which only few have room in memory.
type spilling struct {
	transport *amqp.Transport
	topic     string
	group     string
	feed      driver.Receiver
	send      func(from, to int)
	seen      map[int]int // how often each message came
}

const (
	spilledMessages = 16
	spilledSize     = 64 << 10
	spillPrefetch   = 100
)

func startSpilling(t *testing.T, order driver.Order, log io.Writer, write, read func() error) *spilling {
	return startSpillingTo(t, testenv.RabbitMQ(t), 2, order, log, write, read)
}

func startSpillingTo(t *testing.T, broker string, workers int, order driver.Order, log io.Writer, write, read func() error) *spilling {
	transport := open(t, broker, func(c *amqp.Config) {
		c.PrefetchBytes, c.PrefetchCount, c.Logger = 4*spilledSize, spillPrefetch, slog.New(slog.NewTextHandler(log, nil))
	})
	transport.SpillToForTest(func() (amqp.SpillForTest, error) {
		file, err := amqp.NewTemporaryFileForTest()
		return faultyFile{file, write, read}, err
	})
	topic, group := unique("order.paid.v1"), unique("ledger")
	feed := subscribe(t, transport, driver.Subscription{Group: group, Topics: []string{topic}, Concurrency: workers, Order: order})
	send := func(from, to int) {
		var msgs []*message.Message
		for i := from; i < to; i++ {
			msg := newMessage(topic, fmt.Sprint(topic, ".", i))
			msg.Metadata[driver.HeaderPartitionKey] = fmt.Sprint("k", i)
			msg.Payload = bytes.Repeat([]byte{byte(i)}, spilledSize)
			msgs = append(msgs, msg)
		}
		require.NoError(t, transport.Publish(t.Context(), topic, msgs...))
	}
	t.Cleanup(func() { closeAll(t, transport) })
	return &spilling{transport: transport, topic: topic, group: group, feed: feed, send: send, seen: make(map[int]int)}
}

// next returns the next message, whose body must be whole.
func (s *spilling) next(t *testing.T) *driver.Delivery {
	t.Helper()
	d := next(t, s.feed)
	require.Len(t, d.Message.Payload, spilledSize)
	i := d.Message.Payload[0]
	require.True(t, bytes.Equal(bytes.Repeat([]byte{i}, spilledSize), d.Message.Payload), "another body")
	require.True(t, strings.HasSuffix(driver.MessageID(d.Message), fmt.Sprint(".", i)), "the body of another message")
	s.seen[int(i)]++
	return d
}

// fill hands two messages out, and waits until bodies of n others are written. Of an ordered group, nothing is handed out before
// its leader has received all that was there before.
func (s *spilling) fill(t *testing.T, written <-chan struct{}, n int) []*driver.Delivery {
	t.Helper()
	s.send(0, 2)
	out := []*driver.Delivery{s.next(t), s.next(t)}
	s.send(2, spilledMessages)
	for range n {
		select {
		case <-written:
		case <-time.After(patience):
			require.FailNow(t, "nothing is written to a file")
		}
	}
	return out
}

// someWritten is how many bodies are written before a worker surely gets one of them: an ordered group hands out from memory what
// is being written.
func someWritten(order driver.Order) int {
	if order == driver.Unordered {
		return 1
	}
	return 4
}

func eachSpillOrder(t *testing.T, test func(t *testing.T, order driver.Order)) {
	for _, order := range []driver.Order{driver.Unordered, driver.OrderedByKey} {
		t.Run(order.String(), func(t *testing.T) { test(t, order) })
	}
}

// TestSpill_toASlowDiskStopsNoSettle: while a body is being written to a temporary file, what was handed out can be settled.
func TestSpill_toASlowDiskStopsNoSettle(t *testing.T) {
	eachSpillOrder(t, func(t *testing.T, order driver.Order) {
		stuck, repaired := make(chan struct{}, spilledMessages), make(chan struct{})
		s := startSpilling(t, order, io.Discard, func() error {
			select {
			case stuck <- struct{}{}:
			default:
			}
			<-repaired
			return nil
		}, noFault)
		repair := sync.OnceFunc(func() { close(repaired) })
		t.Cleanup(repair) // before the transport is closed
		out := s.fill(t, stuck, 1)
		settled := make(chan error, len(out))
		go func() {
			for _, d := range out {
				settled <- d.Settler.Ack()
			}
		}()
		var late string
		for range out {
			select {
			case err := <-settled:
				require.NoError(t, err)
			case <-time.After(patience / 4):
				late = "a settle waits for the disk"
			}
		}
		repair()
		require.Empty(t, late)
		for len(s.seen) < spilledMessages {
			ack(t, s.next(t))
		}
	})
}

// TestSpill_toASlowDiskKeepsTheOrder: with one worker, messages are delivered in the order of the queue, also when they are being
// written to a temporary file while the group begins to consume anew, with another prefetch.
func TestSpill_toASlowDiskKeepsTheOrder(t *testing.T) {
	stuck, repaired := make(chan struct{}, 1), make(chan struct{})
	s := startSpillingTo(t, withOptions(testenv.RabbitMQ(t), "queue=classic"), 1, driver.Unordered, io.Discard, func() error {
		select {
		case stuck <- struct{}{}:
		default:
		}
		<-repaired
		return nil
	}, noFault)
	repair := sync.OnceFunc(func() { close(repaired) })
	t.Cleanup(repair) // before the transport is closed
	for i := range 20 {
		publish(t, s.transport, s.topic, fmt.Sprint("small ", i))
		ack(t, next(t, s.feed))
	}
	const n = spillPrefetch + 30 // more than are fetched ahead of small ones
	s.send(0, n)
	select {
	case <-stuck:
	case <-time.After(patience):
		require.FailNow(t, "nothing is written to a file")
	}
	time.AfterFunc(3*time.Second, repair) // meanwhile, fewer messages are to be fetched ahead
	for i := range n {
		d := s.next(t)
		require.Equal(t, byte(i), d.Message.Payload[0])
		ack(t, d)
	}
}

// TestSpill_toAFullDisk: bodies stay in memory, nothing is lost, and a line is logged.
func TestSpill_toAFullDisk(t *testing.T) {
	eachSpillOrder(t, func(t *testing.T, order driver.Order) {
		var log testenv.Buffer
		full := make(chan struct{}, 1000)
		s := startSpilling(t, order, &log, func() error {
			full <- struct{}{}
			return syscall.ENOSPC
		}, noFault)
		for _, d := range s.fill(t, full, 1) {
			ack(t, d)
		}
		for len(s.seen) < spilledMessages {
			ack(t, s.next(t))
		}
		for i, n := range s.seen {
			require.Equal(t, 1, n, "message %d", i)
		}
		require.Equal(t, 1, strings.Count(log.String(), "no temporary file can be written"), log.String())
		require.Contains(t, log.String(), syscall.ENOSPC.Error())
		require.Contains(t, log.String(), "set TMPDIR")
	})
}

// TestSpill_thatCanNotBeRead: the broker redelivers what was in the file.
func TestSpill_thatCanNotBeRead(t *testing.T) {
	eachSpillOrder(t, func(t *testing.T, order driver.Order) {
		var log testenv.Buffer
		var broken atomic.Int64
		written := make(chan struct{}, 1000)
		s := startSpilling(t, order, &log, func() error {
			written <- struct{}{}
			return nil
		}, func() error {
			if broken.Add(1) == 1 {
				return syscall.EIO
			}
			return nil
		})
		for _, d := range s.fill(t, written, someWritten(order)) {
			ack(t, d)
		}
		for len(s.seen) < spilledMessages {
			d := s.next(t)
			_ = d.Settler.Ack() // too late, if the session ends just now
		}
		require.Positive(t, broken.Load())
		require.Contains(t, log.String(), syscall.EIO.Error())
	})
}

// TestSpill_readWhileTheSessionEnds: a message whose body is being read when the connection is lost holds back nothing of the next
// session.
func TestSpill_readWhileTheSessionEnds(t *testing.T) {
	var stopped atomic.Bool
	written, reading, resumed := make(chan struct{}, 1000), make(chan struct{}), make(chan struct{})
	s := startSpilling(t, driver.OrderedByKey, io.Discard, func() error {
		written <- struct{}{}
		return nil
	}, func() error {
		if stopped.CompareAndSwap(false, true) { // the first one
			close(reading)
			<-resumed
		}
		return nil
	})
	resume := sync.OnceFunc(func() { close(resumed) })
	t.Cleanup(resume) // before the transport is closed
	for _, d := range s.fill(t, written, someWritten(driver.OrderedByKey)) {
		ack(t, d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	others := make(chan *driver.Delivery)
	go func() {
		defer close(others)
		for d, err := s.feed.Next(ctx); err == nil; d, err = s.feed.Next(ctx) {
			others <- d
		}
	}()
	handle := func(d *driver.Delivery) {
		s.seen[int(d.Message.Payload[0])]++
		_ = d.Settler.Ack()
	}
	for waits := true; waits; {
		select {
		case d := <-others:
			handle(d)
		case <-reading:
			waits = false
		}
	}
	s.transport.LoseOrderedForTest(s.group)
	for len(s.seen) < spilledMessages-1 {
		_ = s.next(t).Settler.Ack()
	}
	resume()
	for len(s.seen) < spilledMessages {
		d, ok := <-others
		require.True(t, ok, "the message whose body was being read is not redelivered")
		handle(d)
	}
}
