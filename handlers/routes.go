package handlers

import (
	"fmt"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// Routes combines several typed handlers into one, with one group and one queue. Each message goes to the function that takes
// its type: it is a Content-Based Router. The names and options of the routes are ignored; pass the options to Routes. It
// panics if two routes take the same type, or if a route is a raw handler.
func Routes(name string, routes []bus.Handler, opts ...Option) bus.Handler {
	h := bus.Handler{Name: name}
	for _, route := range routes {
		if len(route.Types) == 0 {
			panic(fmt.Sprintf("handlers: handler %q: route %q takes no event type; a raw handler has to be one of its own", name, route.Name))
		}
		for _, t := range route.Types {
			if slices.Contains(h.Types, t) {
				panic(fmt.Sprintf("handlers: handler %q: two routes take %s", name, t))
			}
			h.Types = append(h.Types, t)
		}
		for _, topic := range route.Topics {
			if !slices.Contains(h.Topics, topic) {
				h.Topics = append(h.Topics, topic)
			}
		}
	}
	h.Bind = func(encoder bus.Encoder) message.HandlerFunc {
		table := make(map[bus.Type]message.HandlerFunc)
		for _, route := range routes {
			fn := route.Bind(encoder)
			for _, t := range route.Types {
				table[t] = fn
			}
		}
		return func(msg *message.Message) ([]*message.Message, error) {
			t, err := bus.Attach(msg).Type()
			if err != nil {
				return nil, bus.Permanent(err)
			}
			fn, ok := table[t]
			if !ok {
				return nil, bus.Permanent(noRoute(t, h.Types...))
			}
			return fn(msg)
		}
	}
	h.Check = func(encoder bus.Encoder, msg *message.Message) error {
		t, err := bus.Attach(msg).Type()
		if err != nil {
			return err
		}
		for _, route := range routes {
			if route.Check != nil && slices.Contains(route.Types, t) {
				return route.Check(encoder, msg)
			}
		}
		return nil
	}
	return with(h, opts)
}
