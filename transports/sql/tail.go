package sql

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/tail"
)

// A tail is a group of its own for as long as somebody looks: the database copies to it what it copies
// to every group. It is read and deleted at once, however slow the reader of the copies is, and what a
// dead process leaves behind is cleared away by any other.

// Tail makes a group for the copies, and takes it away at the end.
func (t *Transport) Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error {
	if err := driver.ValidatePattern(pattern); err != nil {
		return fmt.Errorf("sql: tail: %w", err)
	}
	group := tailPrefix + ids.New()
	feed, err := t.Subscribe(ctx, driver.Subscription{Group: group, Topics: []string{pattern}, Concurrency: 1})
	if err != nil {
		return err
	}
	copies := tail.New()
	reading, stop := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() { readTail(reading, feed, copies) })
	defer func() {
		stop()
		reader.Wait()
		t.endTail(ctx, group, feed)
	}()
	err = copies.Read(ctx, fn)
	if errors.Is(err, driver.ErrClosed) && ctx.Err() != nil {
		return context.Cause(ctx) // it has ended the reader, too
	}
	return err
}

// readTail takes everything, at once, and keeps what there is room for.
func readTail(ctx context.Context, feed driver.Receiver, copies *tail.Buffer) {
	defer copies.Close()
	for {
		d, err := feed.Next(ctx)
		if err != nil {
			return
		}
		_ = d.Settler.Ack() // if it is not carried out, the group's end does it
		copies.Add(d.Topic, d.Message)
	}
}

// endTail clears a tail away. Where that fails, others do so later.
func (t *Transport) endTail(ctx context.Context, group string, feed driver.Receiver) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTimeout)
	defer cancel()
	err := feed.Close(ctx)
	g, ok, findErr := t.groups.find(ctx, group)
	if ok {
		err = errors.Join(err, t.groups.silence(ctx, g.id))
	}
	if err = errors.Join(err, findErr); err != nil && !t.leases.isClosed() {
		t.cfg.Logger.Warn("leat: sql: tail not cleared away", "error", err)
	}
}
