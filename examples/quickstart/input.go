package main

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// input publishes lines and counts them. The bus reports the outcomes of the messages.
type input struct {
	from   io.Reader
	reject func(number int, reason error) // called for every line that is not published

	read     atomic.Uint64
	rejected atomic.Uint64
}

// publish publishes every line that is an event, until there are no more or ctx is done. When it returns,
// all calls of Publish have ended. It returns an error if it ended before the input.
func (in *input) publish(ctx, work context.Context, b *bus.Bus) error {
	reading, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	lanes := openLanes(func(l line) {
		if err := b.PublishMessages(work, l.message); err != nil {
			in.drop(l.number, err)
			stop(fmt.Errorf("line %d: %w", l.number, err))
		}
	})

	for l, err := range readLines(reading, in.from).all(reading) {
		if err != nil {
			stop(err)
			break
		}
		in.read.Add(1)
		if l.err != nil {
			in.drop(l.number, l.err)
			continue
		}
		lanes.add(l)
	}
	lanes.close()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(reading)
}

func (in *input) drop(number int, reason error) {
	in.rejected.Add(1)
	in.reject(number, reason)
}

// laneCount is how many messages are published concurrently, so that they do not wait for each other's
// confirmations.
const laneCount = 8

// lanes publish concurrently. The messages of a key use one lane, which keeps their order.
type lanes struct {
	seed    maphash.Seed
	queues  [laneCount]chan line
	working sync.WaitGroup
}

func openLanes(publish func(line)) *lanes {
	l := &lanes{seed: maphash.MakeSeed()}
	for i := range l.queues {
		queue := make(chan line)
		l.queues[i] = queue
		l.working.Go(func() {
			for next := range queue {
				publish(next)
			}
		})
	}
	return l
}

func (l *lanes) add(next line) {
	key := driver.PartitionKey(next.message)
	l.queues[maphash.String(l.seed, key)%laneCount] <- next
}

func (l *lanes) close() {
	for _, queue := range l.queues {
		close(queue)
	}
	l.working.Wait()
}
