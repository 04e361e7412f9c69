package fxmodule

import (
	"context"
	"fmt"
	"reflect"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports"
)

// The value groups. None of them has an order, and none needs one.
const (
	handlersGroup   = `group:"leat.handlers"`
	upcastersGroup  = `group:"leat.upcasters"`
	observersGroup  = `group:"leat.observers"`
	transportsGroup = `group:"leat.transports"`
)

// Handle registers a plain function. name is durable: it names the consumer group.
func Handle[T bus.Event](name string, fn func(context.Context, T) error, opts ...handlers.Option) fx.Option {
	return HandleFunc(func() (bus.Handler, error) {
		return made(func() bus.Handler { return handlers.Func(name, fn, opts...) })
	})
}

// HandleMethod registers a method expression, such as (*Ledger).Record; its receiver comes from fx.
func HandleMethod[S any, T bus.Event](name string, fn func(S, context.Context, T) error, opts ...handlers.Option) fx.Option {
	return HandleFunc(func(receiver S) (bus.Handler, error) {
		return made(func() bus.Handler { return handlers.Method(name, receiver, fn, opts...) })
	})
}

// made returns the handler, or as an error what the making of it panics with: a mistake in the program, which
// reads better without a stack.
func made(construct func() bus.Handler) (h bus.Handler, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("fxmodule: %v", v)
		}
	}()
	return construct(), nil
}

// HandleFunc registers what a constructor returns: func(dependencies…) bus.Handler, or with an error
// too. Its dependencies come from fx. Use it with the shapes of package handlers.
func HandleFunc(constructor any) fx.Option {
	return provide[bus.Handler]("HandleFunc", constructor, handlersGroup)
}

// Upcast registers an upcaster from one version of an event to a higher one.
func Upcast[Old, New bus.Event](up func(Old) New) fx.Option {
	return provide[middleware.Upcaster]("Upcast", func() middleware.Upcaster { return middleware.Upcast(up) }, upcastersGroup)
}

// Observe registers what a constructor returns as a bus.Observer: any type that is one, with an error
// too. Its dependencies come from fx.
func Observe(constructor any) fx.Option {
	return provide[bus.Observer]("Observe", constructor, observersGroup)
}

// Transport adds a transport that leat does not bring along.
func Transport(open transports.Opener, schemes ...string) fx.Option {
	return provide[addOn]("Transport", func() addOn { return addOn{open, schemes} }, transportsGroup)
}

// UseTransport gives the bus a transport of the application's, in place of the one that LEAT_URL names, such as one over a
// pool that the application has. The constructor returns any type that is a bus.Transport, with an error too, and its
// dependencies come from fx:
//
//	fxmodule.UseTransport(func(db *pgxpool.Pool) (*sql.Transport, error) {
//		return sql.NewPgx(context.Background(), db, sql.Config{})
//	})
//
// The bus closes it.
func UseTransport(constructor any) fx.Option {
	return provide[bus.Transport]("UseTransport", constructor, "")
}

// UseCodec gives the bus a codec, in place of JSON. The constructor returns any type that is a bus.Codec, with an error too.
func UseCodec(constructor any) fx.Option {
	return provide[bus.Codec]("UseCodec", constructor, "")
}

// addOn is a transport with its schemes.
type addOn struct {
	open    transports.Opener
	schemes []string
}

// provide gives what a constructor returns as a T, into a value group where one is named: fx itself would
// take anything, and nobody would ever ask for it.
func provide[T any](option string, constructor any, group string, annotations ...fx.Annotation) fx.Option {
	want, have := reflect.TypeFor[T](), reflect.TypeOf(constructor)
	if have == nil || have.Kind() != reflect.Func || have.NumOut() == 0 || !have.Out(0).AssignableTo(want) {
		return fx.Error(fmt.Errorf("fxmodule: %s takes a constructor, func(dependencies…) %s or with an error too; this is %T", option, want, constructor))
	}
	if group != "" {
		annotations = append(annotations, fx.ResultTags(group))
	}
	if want.Kind() == reflect.Interface && have.Out(0) != want {
		annotations = append(annotations, fx.As(new(T)))
	}
	return fx.Provide(fx.Annotate(constructor, annotations...))
}
