package memory

import (
	"context"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/tail"
)

// watcher is one call of Tail.
type watcher struct {
	pattern string
	*tail.Buffer
}

// Tail implements [driver.Inspector]. Publish makes the copies, also of messages that reach no group.
func (t *Transport) Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error {
	if err := driver.ValidatePattern(pattern); err != nil {
		return fmt.Errorf("memory: tail: %w", err)
	}
	w := &watcher{pattern, tail.New()}
	if err := t.addTail(w); err != nil {
		return err
	}
	defer t.removeTail(w)
	return w.Read(ctx, fn)
}

func (t *Transport) addTail(w *watcher) error {
	t.tailing.Lock()
	defer t.tailing.Unlock()
	if t.closed.Load() {
		return driver.ErrClosed
	}
	t.tails = append(t.tails, w)
	t.tailed.Store(int32(len(t.tails))) //nolint:gosec // a few
	return nil
}

func (t *Transport) removeTail(w *watcher) {
	t.tailing.Lock()
	defer t.tailing.Unlock()
	t.tails = slices.DeleteFunc(t.tails, func(other *watcher) bool { return other == w })
	t.tailed.Store(int32(len(t.tails))) //nolint:gosec // a few
}

// show gives every watcher of the topic a copy. Without watchers it costs one atomic load.
func (t *Transport) show(topic string, msgs []*message.Message) {
	if t.tailed.Load() == 0 {
		return
	}
	t.tailing.Lock()
	defer t.tailing.Unlock()
	for _, w := range t.tails {
		if !driver.MatchTopic(w.pattern, topic) {
			continue
		}
		for _, msg := range msgs {
			w.Add(topic, msg.Copy())
		}
	}
}

// endTails ends all calls of Tail. t.closed is set before.
func (t *Transport) endTails() {
	t.tailing.Lock()
	defer t.tailing.Unlock()
	for _, w := range t.tails {
		w.Close()
	}
	t.tails = nil
	t.tailed.Store(0)
}
