package handlers

import (
	"bytes"
	"context"
	"maps"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Raw returns a handler that calls a function with messages as they are. Topics may be patterns: order.paid.v1, order.*,
// order.>. Each try gets its own copy of the message, so the function may change it. Raw panics if fn is nil.
func Raw(name string, topics []string, fn func(context.Context, *message.Message) error, opts ...Option) bus.Handler {
	require(name, fn != nil)
	h := bus.Handler{
		Name:   name,
		Topics: topics,
		Bind: func(bus.Encoder) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) {
				own := &message.Message{UUID: msg.UUID, Payload: bytes.Clone(msg.Payload), Metadata: maps.Clone(msg.Metadata)}
				own.SetContext(msg.Context())
				return nil, fn(own.Context(), own)
			}
		},
	}
	return with(h, opts)
}
