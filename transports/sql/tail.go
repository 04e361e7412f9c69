package sql

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
)

// A tail is a group of its own for as long as somebody looks: the database copies to it what it copies
// to every group. It is read and deleted at once, however slow the reader of the copies is, and what a
// dead process leaves behind is cleared away by any other.

const (
	// tailPrefix begins the names of such groups, which Groups and Topics don't show.
	tailPrefix = "leat-tail."
	// tailBuffer is how many copies wait for a slow reader; what comes then is left out.
	tailBuffer = 1000
	// tailAbandoned is how long a tail may be without its consumer before it is taken for dead.
	tailAbandoned = time.Minute
	// tailForgotten is when its last row goes: no transaction of somebody's that has seen it is still open.
	tailForgotten = time.Hour
)

func isTail(group string) bool { return strings.HasPrefix(group, tailPrefix) }

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
	copies := make(chan *driver.Delivery, tailBuffer)
	reading, stop := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() { readTail(reading, feed, copies) })
	defer func() {
		stop()
		reader.Wait()
		t.endTail(ctx, group, feed)
	}()
	for d := range copies {
		if err := fn(d.Topic, d.Message); err != nil {
			return err
		}
	}
	if ctx.Err() == nil {
		return driver.ErrClosed
	}
	return context.Cause(ctx)
}

// readTail takes everything, at once, and keeps what there is room for.
func readTail(ctx context.Context, feed driver.Receiver, copies chan<- *driver.Delivery) {
	defer close(copies)
	for {
		d, err := feed.Next(ctx)
		if err != nil {
			return
		}
		_ = d.Settler.Ack() // if it is not carried out, the group's end does it
		select {
		case copies <- d:
		default:
		}
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
		t.cfg.Logger.Warn("leat: sql: end of a tail; it is cleared away later", "err", err)
	}
}

// silence takes a group's subscriptions and messages away. It needs no more rights than a service has.
func (gs groups) silence(ctx context.Context, id int64) error {
	if _, err := gs.pool.exec(ctx, gs.sql(`UPDATE {subscriptions} SET pattern = '', depth = 0, matches = '' WHERE group_id = ? AND pattern <> ''`), id); err != nil {
		return err
	}
	_, err := gs.pool.exec(ctx, gs.sql(`DELETE FROM {messages} WHERE group_id = ?`), id)
	return err
}

// cleanTails clears away what tails have left behind whose process died.
func (gs groups) cleanTails(ctx context.Context) error {
	type row struct {
		id  int64
		old bool
	}
	all, err := collect(ctx, gs.pool, func(r rows, x *row) error { return r.Scan(&x.id, &x.old) }, gs.sql(`
		SELECT id, created_at < {now} - ? FROM {groups} WHERE name LIKE '`+tailPrefix+`%' AND created_at < {now} - ?
		AND id NOT IN (SELECT group_id FROM {consumers} WHERE expires_at > {now})`),
		tailForgotten.Microseconds(), tailAbandoned.Microseconds())
	for _, x := range all {
		if err := gs.silence(ctx, x.id); err != nil {
			return err
		}
		if !x.old {
			continue
		}
		for _, table := range []string{
			`DELETE FROM {subscriptions} WHERE group_id = ?`, `DELETE FROM {turns} WHERE group_id = ?`, `DELETE FROM {groups} WHERE id = ?`,
		} {
			if _, err := gs.pool.exec(ctx, gs.sql(table), x.id); err != nil {
				return nil //nolint:nilerr // a user without the right leaves three rows that do nothing
			}
		}
	}
	return err
}
