package handlers

import (
	"bytes"
	"context"
	"maps"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Raw makes a handler of messages as they are, on topics and patterns: order.paid.v1, order.*, order.>.
// Every try gets a copy of its own, so the function may change it.
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
