package handlers

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Func returns a handler that calls a function. It panics if fn is nil or T is not a valid event type.
func Func[T bus.Event](name string, fn func(context.Context, T) error, opts ...Option) bus.Handler {
	require(name, fn != nil)
	return typed(name, opts, func() typedFunc[T] {
		return func(ctx context.Context, _ bus.Encoder, e T) ([]*message.Message, error) {
			return nil, fn(ctx, e)
		}
	})
}

// Method returns a handler that calls a method expression, such as (*Ledger).Record, on its receiver. It panics as [Func] does.
func Method[S any, T bus.Event](name string, receiver S, fn func(S, context.Context, T) error, opts ...Option) bus.Handler {
	require(name, fn != nil)
	return Func(name, func(ctx context.Context, e T) error { return fn(receiver, ctx, e) }, opts...)
}

// Reply returns a handler that calls a function and publishes the event that it returns. The message is acked after that event
// is safe on the transport. The event has the same id at every try, so that its consumers can detect duplicates. It panics as
// [Func] does.
func Reply[In, Out bus.Event](name string, fn func(context.Context, In) (Out, error), opts ...Option) bus.Handler {
	require(name, fn != nil)
	return typed(name, opts, func() typedFunc[In] {
		return func(ctx context.Context, encoder bus.Encoder, in In) ([]*message.Message, error) {
			out, err := fn(ctx, in)
			if err != nil {
				return nil, err
			}
			msg, err := encoder.Encode(ctx, out, bus.WithID(bus.DeliveryFrom(ctx).ReplyID()))
			if err != nil {
				return nil, bus.Permanent(fmt.Errorf("reply: %w", err))
			}
			return []*message.Message{msg}, nil
		}
	})
}

// require panics if a handler has no function.
func require(name string, function bool) {
	if !function {
		panic(fmt.Sprintf("handlers: handler %q: its function is nil", name))
	}
}

// typedFunc is the common form of all functions that take an event.
type typedFunc[T bus.Event] func(context.Context, bus.Encoder, T) ([]*message.Message, error)

// typed returns a handler that decodes and validates an event and calls a function with it.
func typed[T bus.Event](name string, opts []Option, bind func() typedFunc[T]) bus.Handler {
	t, err := bus.TypeOf[T]()
	if err != nil {
		panic(fmt.Sprintf("handlers: handler %q: %v", name, err))
	}
	h := bus.Handler{
		Name:   name,
		Types:  []bus.Type{t},
		Topics: everyVersion(t.Name),
		Bind: func(encoder bus.Encoder) message.HandlerFunc {
			fn, validate := bind(), validation[T]()
			return func(msg *message.Message) ([]*message.Message, error) {
				event, err := decode(t, encoder, validate, msg)
				if err != nil {
					return nil, bus.Permanent(err)
				}
				return fn(msg.Context(), encoder, event)
			}
		},
		Check: func(encoder bus.Encoder, msg *message.Message) error {
			_, err := decode(t, encoder, validation[T](), msg)
			return err
		},
	}
	return with(h, opts)
}

// everyVersion returns the topics of all versions of an event, and the topic without a version that foreign producers use.
func everyVersion(name string) []string { return []string{name + ".*", name} }

// ErrNoRoute is the error of a message with an older version of the handler's event from which there is no upcaster.
var ErrNoRoute = errors.New("the handler does not take this type")

// noRoute returns the error of a message whose type the handler does not take.
func noRoute(have bus.Type, takes ...bus.Type) error {
	newest, known := 0, false
	for _, t := range takes {
		if t.Name == have.Name {
			newest, known = max(newest, t.Version), true
		}
	}
	switch {
	case !known:
		return bus.Discard(&bus.OtherEventError{Have: have, Takes: takes})
	case have.Version > newest:
		return &bus.NewerVersionError{Have: have, Takes: takes}
	}
	return fmt.Errorf("%s: %w: it takes %v (add a function for %s, or an upcaster from it)", have, ErrNoRoute, takes, have)
}

// decode decodes and validates an event. Its errors are permanent, unless Validate returns a wrapped one.
func decode[T bus.Event](want bus.Type, encoder bus.Encoder, validate func(T) error, msg *message.Message) (event T, err error) {
	have, err := bus.Attach(msg).Type()
	if err != nil {
		return event, err
	}
	if have != want {
		return event, noRoute(have, want)
	}
	if err := encoder.Decode(msg, &event); err != nil {
		return event, fmt.Errorf("decode %s: %w", have, err)
	}
	if err := validate(event); err != nil {
		return event, fmt.Errorf("invalid %s: %w", have, err)
	}
	return event, nil
}

type validator interface{ Validate() error }

// validation returns a function that calls the Validate method of events of type T, nil if they have none.
func validation[T any]() func(T) error {
	if !reflect.TypeFor[T]().Implements(reflect.TypeFor[validator]()) {
		return func(T) error { return nil }
	}
	return func(event T) error { return any(event).(validator).Validate() }
}
