// Package tail buffers copies of messages for an operator's tail command.
package tail

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// size is the capacity of a buffer. Copies that do not fit are dropped.
const size = 1000

// A Buffer passes copies of messages from publishers, which never wait, to one reader. Add may be called concurrently; Close must
// not be called concurrently with Add.
type Buffer struct{ copies chan published }

type published struct {
	topic string
	msg   *message.Message
}

// New returns an empty buffer.
func New() *Buffer { return &Buffer{make(chan published, size)} }

// Add adds a copy, or drops it if the buffer is full. It does not block.
func (b *Buffer) Add(topic string, msg *message.Message) {
	select {
	case b.copies <- published{topic, msg}:
	default:
	}
}

// Close ends Read after it has read what is in the buffer.
func (b *Buffer) Close() { close(b.copies) }

// Read calls fn with each copy, one at a time. It blocks until ctx is done, Close is called or fn returns an error, and returns
// ctx's cause, [driver.ErrClosed] or fn's error.
func (b *Buffer) Read(ctx context.Context, fn func(topic string, msg *message.Message) error) error {
	for {
		select {
		case p, ok := <-b.copies:
			if !ok {
				return driver.ErrClosed
			}
			if err := fn(p.topic, p.msg); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
