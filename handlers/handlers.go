package handlers

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Func makes a handler of a plain function. It panics when T can't be an event, which is a mistake
// in the program.
func Func[T bus.Event](name string, fn func(context.Context, T) error, opts ...Option) bus.Handler {
	require(name, fn != nil)
	return typed(name, opts, func() typedFunc[T] {
		return func(ctx context.Context, _ bus.Encoder, e T) ([]*message.Message, error) {
			return nil, fn(ctx, e)
		}
	})
}

// Method makes a handler of a method expression and its receiver, such as (*Ledger).Record.
func Method[S any, T bus.Event](name string, receiver S, fn func(S, context.Context, T) error, opts ...Option) bus.Handler {
	require(name, fn != nil)
	return Func(name, func(ctx context.Context, e T) error { return fn(receiver, ctx, e) }, opts...)
}

// Reply makes a handler of a function whose result is published when it succeeds. The message is done
// only when the result is safe on the transport. The result has the same id at every try, so that its consumers see
// a duplicate if the message is redelivered.
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

// require panics for a handler without a function: a mistake in the program.
func require(name string, function bool) {
	if !function {
		panic(fmt.Sprintf("handlers: handler %q: its function is nil", name))
	}
}

// typedFunc is what all typed shapes come down to.
type typedFunc[T bus.Event] func(context.Context, bus.Encoder, T) ([]*message.Message, error)

// typed makes a handler that decodes, validates and calls.
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
	}
	return with(h, opts)
}

// everyVersion returns the topics of all versions of an event, and the one foreign producers use that
// put the version into the body.
func everyVersion(name string) []string { return []string{name + ".*", name} }

// ErrNoRoute says that a handler got an older version of its event, and there is no upcaster from it.
var ErrNoRoute = errors.New("the handler does not take this type")

// noRoute returns why a handler of these types does not take one that is none of them.
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

// decode makes the event. Its errors are permanent, unless they say otherwise.
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

// validation returns the events' own Validate, or nil if they have none.
func validation[T any]() func(T) error {
	if !reflect.TypeFor[T]().Implements(reflect.TypeFor[validator]()) {
		return func(T) error { return nil }
	}
	return func(event T) error { return any(event).(validator).Validate() }
}
