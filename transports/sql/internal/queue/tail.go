package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/backoff"
	"github.com/leatbus/leat/transports/internal/tail"
	"github.com/leatbus/leat/transports/sql/internal/database"
)

// A tail is a temporary group, to which messages are published as to every group. They are acked at once, however
// slow fn is. If a process dies, other processes remove its tails.

// Tail calls fn with copies of the messages of a pattern that are published from now on. It blocks until ctx is done, fn returns
// an error or the transport is closed, and returns ctx's cause, fn's error or [driver.ErrClosed]. It creates a group for the
// copies, and removes it at the end.
func (t *Transport) Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error {
	if err := driver.ValidatePattern(pattern); err != nil {
		return fmt.Errorf("sql: tail: %w", err)
	}
	group := tailPrefix + ids.New()
	receiver, err := t.Subscribe(ctx, driver.Subscription{Group: group, Topics: []string{pattern}, Concurrency: 1})
	if err != nil {
		return err
	}
	copies := tail.New()
	ctx, end := context.WithCancelCause(ctx)
	reading, stop := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() { readTail(reading, receiver, copies) })
	reader.Go(func() { t.watchTail(reading, group, end) })
	defer func() {
		stop()
		reader.Wait()
		t.endTail(ctx, group, receiver)
	}()
	err = copies.Read(ctx, fn)
	if errors.Is(err, driver.ErrClosed) && ctx.Err() != nil {
		return context.Cause(ctx) // which has closed the copies
	}
	return err
}

var errTailRemoved = errors.New("this process was suspended for over a minute, and others have removed the tail; start it again")

// watchTail ends a tail that another process has removed, since it gets no more copies.
func (t *Transport) watchTail(ctx context.Context, group string, end context.CancelCauseFunc) {
	for backoff.Sleep(ctx, t.core.Config.Lease/3) {
		n, ok, err := database.Number(ctx, t.core.Pool, t.core.SQL(`SELECT count(*) FROM {subscriptions} s JOIN {groups} g ON g.id = s.group_id WHERE g.name = ? AND s.pattern <> ''`), group)
		if err == nil && ok && n == 0 {
			end(fmt.Errorf("sql: tail: %w", errTailRemoved))
			return
		}
	}
}

// readTail acks all messages at once, and adds them to the copies, which drop those that they have no room for.
func readTail(ctx context.Context, receiver driver.Receiver, copies *tail.Buffer) {
	defer copies.Close()
	for {
		d, err := receiver.Next(ctx)
		if err != nil {
			return
		}
		_ = d.Settler.Ack() // if it is not written, endTail deletes the message
		copies.Add(d.Topic, d.Message)
	}
}

// endTail removes a tail. If it fails, another process removes the tail later.
func (t *Transport) endTail(ctx context.Context, group string, receiver driver.Receiver) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), database.StatementTimeout)
	defer cancel()
	err := receiver.Close(ctx)
	g, ok, findErr := t.core.groups.find(ctx, group)
	if ok {
		err = errors.Join(err, t.core.groups.silence(ctx, g.id))
	}
	if err = errors.Join(err, findErr); err != nil && !t.core.leases.isClosed() {
		t.core.Config.Logger.Warn("leat: sql: tail not removed", "error", err)
	}
}
