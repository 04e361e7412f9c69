package memory

import (
	"context"
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// tailBuffer is how many copies wait for a slow reader; what comes then is left out.
const tailBuffer = 1000

// tail is somebody who looks at what is published.
type tail struct {
	pattern string
	copies  chan copied
}

type copied struct {
	topic string
	msg   *message.Message
}

// Tail gets its copies from Publish, of messages that no group wants too.
func (t *Transport) Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error {
	if err := driver.ValidatePattern(pattern); err != nil {
		return fmt.Errorf("memory: tail: %w", err)
	}
	x := &tail{pattern: pattern, copies: make(chan copied, tailBuffer)}
	if err := t.addTail(x); err != nil {
		return err
	}
	defer t.removeTail(x)
	for {
		select {
		case c, ok := <-x.copies:
			if !ok {
				return driver.ErrClosed
			}
			if err := fn(c.topic, c.msg); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (t *Transport) addTail(x *tail) error {
	t.tailing.Lock()
	defer t.tailing.Unlock()
	if t.closed.Load() {
		return driver.ErrClosed
	}
	t.tails = append(t.tails, x)
	t.tailed.Store(int32(len(t.tails))) //nolint:gosec // a few
	return nil
}

func (t *Transport) removeTail(x *tail) {
	t.tailing.Lock()
	defer t.tailing.Unlock()
	t.tails = slices.DeleteFunc(t.tails, func(other *tail) bool { return other == x })
	t.tailed.Store(int32(len(t.tails))) //nolint:gosec // a few
}

// show gives every tail of the topic a copy. Where nobody looks it costs one atomic load.
func (t *Transport) show(topic string, msgs []*message.Message) {
	if t.tailed.Load() == 0 {
		return
	}
	t.tailing.Lock()
	defer t.tailing.Unlock()
	for _, x := range t.tails {
		if !driver.MatchTopic(x.pattern, topic) {
			continue
		}
		for _, msg := range msgs {
			select {
			case x.copies <- copied{topic, msg.Copy()}:
			default:
			}
		}
	}
}

// endTails ends them all. The caller has set t.closed.
func (t *Transport) endTails() {
	t.tailing.Lock()
	defer t.tailing.Unlock()
	for _, x := range t.tails {
		close(x.copies)
	}
	t.tails = nil
	t.tailed.Store(0)
}
