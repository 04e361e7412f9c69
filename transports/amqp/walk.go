package amqp

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// walkPatience is how long the caller of Walk may handle messages before others may use the queue.
const walkPatience = time.Second

// A walk is one call of Walk. It reads ahead of fn, and closes the queue for a while when fn is slow. Then it reads from the front
// and skips messages that were shown, so it keeps the id of each message.
type walk struct {
	q       *poisonQueue
	latest  revisions
	shown   map[string]bool // ids that were shown before the queue was given back
	batch   chan []driver.PoisonedMessage
	pending []driver.PoisonedMessage // read, and not shown because fn was slow
}

// Walk reads the queue and calls fn once with each message. If a process was killed while it changed a message, fn may get the old
// revision.
func (q *poisonQueue) Walk(ctx context.Context, fn func(driver.PoisonedMessage) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &walk{q: q, latest: make(revisions), shown: make(map[string]bool), batch: make(chan []driver.PoisonedMessage)}
	var failed error
	go func() {
		defer close(w.batch)
		failed = w.run(ctx)
	}()
	var err error
	for batch := range w.batch {
		for i := 0; i < len(batch) && err == nil; i++ {
			err = fn(batch[i])
		}
		if err != nil {
			cancel() // and wait until the messages are requeued
		}
	}
	if err != nil {
		return err
	}
	return failed
}

// run reads until all messages are shown.
func (w *walk) run(ctx context.Context) error {
	for {
		if err := w.q.guard(ctx, "walk", w.read); err != nil || w.pending == nil {
			return err
		}
		select {
		case w.batch <- w.pending:
			w.pending = nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// read reads until the end, or until fn is slow.
func (w *walk) read(ctx context.Context) error {
	return w.q.browse(ctx, func(b *browser) error {
		seen := make(map[string]int)
		var void []*amqp.Delivery
		clear(w.latest)
		err := b.walkStrides(func(all []*amqp.Delivery) (bool, error) {
			batch, at := make([]driver.PoisonedMessage, 0, len(all)), make(map[revisionKey]int)
			for _, d := range all {
				id := idOf(d, seen)
				key := keyOf(id, d)
				_, read := w.latest[key]
				old, latest := w.latest.enter(key, d)
				if old != nil {
					void = append(void, old)
				}
				i, here := at[key]
				switch {
				case here && latest: // there are two revisions, and this is the later one
					batch[i] = shown(id, d, w.q.t.cfg.stock)
				case !here && !read && !w.shown[id]:
					at[key] = len(batch)
					batch = append(batch, shown(id, d, w.q.t.cfg.stock))
				}
			}
			return w.show(ctx, batch)
		})
		if err != nil {
			return err
		}
		if w.pending != nil {
			for key := range w.latest {
				w.shown[key.id] = true
			}
		}
		return b.take(void...)
	})
}

// show passes messages to fn. More is false when fn is slow.
func (w *walk) show(ctx context.Context, batch []driver.PoisonedMessage) (more bool, err error) {
	if len(batch) == 0 {
		return true, nil
	}
	timer := time.NewTimer(walkPatience)
	defer timer.Stop()
	select {
	case w.batch <- batch:
		return true, nil
	case <-timer.C:
		w.pending = batch
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
