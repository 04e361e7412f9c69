// Package tail keeps copies of messages for an operator who watches them.
package tail

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// size is how many copies wait for a slow reader. What comes when there are so many is left out.
const size = 1000

// A Buffer holds copies between those who publish and one reader, whom they never wait for. Add may be called
// concurrently; Close must not be called concurrently with Add.
type Buffer struct{ copies chan published }

type published struct {
	topic string
	msg   *message.Message
}

// New returns an empty buffer.
func New() *Buffer { return &Buffer{make(chan published, size)} }

// Add gives the reader a copy, unless the buffer is full. It does not block.
func (b *Buffer) Add(topic string, msg *message.Message) {
	select {
	case b.copies <- published{topic, msg}:
	default:
	}
}

// Close ends Read once it has read what is in the buffer.
func (b *Buffer) Close() { close(b.copies) }

// Read calls fn with each copy, one at a time, until ctx is done, Close is called, or fn returns an error. It returns ctx's
// cause, [driver.ErrClosed] or fn's error.
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
