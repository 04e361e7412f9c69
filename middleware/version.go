package middleware

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// An Upcaster converts the payload of one event version to a higher one. It is a Message Translator.
type Upcaster struct {
	From, To bus.Type
	lift     func(bus.Codec, []byte) ([]byte, error)
	err      error // what is wrong with it
}

// Upcast returns an upcaster that calls a function. Upcasters form chains: with v1 → v2 and v2 → v3, a handler of v3 also gets
// v1. New must have a higher version of the same event than Old; versions may be skipped.
func Upcast[Old, New bus.Event](up func(Old) New) Upcaster {
	from, fromErr := bus.TypeOf[Old]()
	to, toErr := bus.TypeOf[New]()
	u := Upcaster{From: from, To: to, err: errors.Join(fromErr, toErr)}
	if u.err == nil && (from.Name != to.Name || from.Version >= to.Version) {
		u.err = fmt.Errorf("upcaster from %s to %s: it must lead to a higher version of the same event", from, to)
	}
	u.lift = func(codec bus.Codec, payload []byte) ([]byte, error) {
		var old Old
		if err := codec.Unmarshal(payload, &old); err != nil {
			return nil, fmt.Errorf("decode %s: %w", from, err)
		}
		return codec.Marshal(up(old))
	}
	return u
}

// DefaultHoldNewer is how long a message of a newer version waits for a newer version of the service.
const DefaultHoldNewer = time.Hour

// Version returns the step that converts payloads of older versions to a type that the handler takes.
//
// A message of a newer version is redelivered every 30 s, which does not count, and poisoned after holdNewer: in a rolling
// deploy, new versions are published before every consumer takes them. If holdNewer is not positive, it is poisoned at once.
// Messages of other events pass through.
//
// Wrap returns an error if an upcaster and the handler take the same version, if two upcasters have the same version as input,
// or if a chain of upcasters ends before it reaches a type of the handler.
func Version(types []bus.Type, holdNewer time.Duration, upcasters ...Upcaster) (message.HandlerMiddleware, error) {
	chains, err := upcastChains(types, upcasters)
	if err != nil || len(types) == 0 {
		return nil, err
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		next = awaitNewer(holdNewer, next)
		if len(chains) == 0 {
			return next
		}
		return func(msg *message.Message) ([]*message.Message, error) {
			d := bus.Attach(msg)
			t, err := d.Type()
			if err != nil {
				return nil, bus.Permanent(err)
			}
			chain, ok := chains[t]
			if !ok {
				return next(msg)
			}
			return lifted(d.Codec(), chain, msg, next)
		}
	}, nil
}

// awaitNewer gives messages of newer versions back.
func awaitNewer(limit time.Duration, next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		produced, err := next(msg)
		if err == nil {
			return produced, nil
		}
		if newer, ok := errors.AsType[*bus.NewerVersionError](err); ok {
			return nil, bus.Attach(msg).AwaitNewer(newer, limit)
		}
		return nil, err
	}
}

// lifted calls the handler with a converted copy of the message, and leaves the message as it is.
func lifted(codec bus.Codec, chain []Upcaster, msg *message.Message, next message.HandlerFunc) ([]*message.Message, error) {
	payload := []byte(msg.Payload)
	for _, u := range chain {
		up, err := u.lift(codec, payload)
		if err != nil {
			return nil, bus.Permanent(fmt.Errorf("lift %s to %s: %w", u.From, u.To, err))
		}
		payload = up
	}
	oldPayload, oldType, typed := msg.Payload, msg.Metadata[driver.HeaderType], false
	_, typed = msg.Metadata[driver.HeaderType]
	msg.Payload = payload
	msg.Metadata[driver.HeaderType] = chain[len(chain)-1].To.String()
	defer func() {
		msg.Payload = oldPayload
		if typed {
			msg.Metadata[driver.HeaderType] = oldType
		} else {
			delete(msg.Metadata, driver.HeaderType)
		}
	}()
	return next(msg)
}

// upcastChains returns, for each version that must be converted, the chain of upcasters to a type of the handler.
func upcastChains(types []bus.Type, upcasters []Upcaster) (map[bus.Type][]Upcaster, error) {
	from := make(map[bus.Type]Upcaster)
	for _, u := range upcasters {
		if u.err != nil {
			return nil, u.err
		}
		if !slices.ContainsFunc(types, func(t bus.Type) bool { return t.Name == u.From.Name }) {
			continue
		}
		if other, twice := from[u.From]; twice {
			return nil, fmt.Errorf("two upcasters begin at %s: to %s and to %s", u.From, other.To, u.To)
		}
		from[u.From] = u
	}

	chains := make(map[bus.Type][]Upcaster)
	for start := range from {
		chain, err := upcastChain(start, types, from)
		if err != nil {
			return nil, err
		}
		if chain != nil {
			chains[start] = chain
		}
	}
	return chains, nil
}

// upcastChain returns the chain of upcasters from one version to a type that the handler takes. It returns no chain for
// versions above all that the handler takes.
func upcastChain(start bus.Type, types []bus.Type, from map[bus.Type]Upcaster) (chain []Upcaster, err error) {
	for at := start; ; {
		u, ok := from[at]
		if !ok {
			if above(at, types) {
				return nil, nil
			}
			return nil, fmt.Errorf("upcasters lead from %s to %s and no further, but the handler takes %s; add an upcaster from %s", start, at, typesOf(at.Name, types), at)
		}
		chain = append(chain, u)
		at = u.To
		if !slices.Contains(types, at) {
			continue
		}
		if slices.Contains(types, start) {
			return nil, fmt.Errorf("%s is handled as it is, and an upcaster would lift it to %s; one way only: remove the upcaster or the function for %s", start, at, start)
		}
		return chain, nil
	}
}

func above(t bus.Type, types []bus.Type) bool {
	return !slices.ContainsFunc(types, func(other bus.Type) bool { return other.Name == t.Name && other.Version > t.Version })
}

func typesOf(name string, types []bus.Type) []bus.Type {
	return slices.DeleteFunc(slices.Clone(types), func(t bus.Type) bool { return t.Name != name })
}
