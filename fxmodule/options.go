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

// The value groups. They have no order and need none.
const (
	handlersGroup   = `group:"leat.handlers"`
	upcastersGroup  = `group:"leat.upcasters"`
	observersGroup  = `group:"leat.observers"`
	transportsGroup = `group:"leat.transports"`
)

// Handle registers a function as a handler. The name is durable: it names the consumer group.
func Handle[T bus.Event](name string, fn func(context.Context, T) error, opts ...handlers.Option) fx.Option {
	return HandleFunc(func() (bus.Handler, error) {
		return made(func() bus.Handler { return handlers.Func(name, fn, opts...) })
	})
}

// HandleMethod registers a method expression, such as (*Ledger).Record, as a handler. fx provides its receiver.
func HandleMethod[S any, T bus.Event](name string, fn func(S, context.Context, T) error, opts ...handlers.Option) fx.Option {
	return HandleFunc(func(receiver S) (bus.Handler, error) {
		return made(func() bus.Handler { return handlers.Method(name, receiver, fn, opts...) })
	})
}

// made returns the handler. If constructing it panics, because the program has a mistake, made returns the panic as an error,
// which is easier to read than a stack.
func made(construct func() bus.Handler) (h bus.Handler, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("fxmodule: %v", v)
		}
	}()
	return construct(), nil
}

// HandleFunc registers the handler that a constructor returns: func(dependencies…) bus.Handler, or with an error as well. fx
// provides its dependencies. Use it with the functions of package handlers.
func HandleFunc(constructor any) fx.Option {
	return provide[bus.Handler]("HandleFunc", constructor, handlersGroup)
}

// Upcast registers an upcaster from one version of an event to a higher one.
func Upcast[Old, New bus.Event](up func(Old) New) fx.Option {
	return provide[middleware.Upcaster]("Upcast", func() middleware.Upcaster { return middleware.Upcast(up) }, upcastersGroup)
}

// Observe registers the bus.Observer that a constructor returns, of any type that implements it, and with an error if needed. fx
// provides its dependencies.
func Observe(constructor any) fx.Option {
	return provide[bus.Observer]("Observe", constructor, observersGroup)
}

// Transport adds a transport for URL schemes that leat does not have.
func Transport(open transports.Opener, schemes ...string) fx.Option {
	return provide[addOn]("Transport", func() addOn { return addOn{open, schemes} }, transportsGroup)
}

// UseTransport makes the bus use the application's transport in place of the one that LEAT_URL names, for example one over the
// application's connection pool. The constructor returns any type that implements bus.Transport, with an error if needed. fx
// provides its dependencies:
//
//	fxmodule.UseTransport(func(db *pgxpool.Pool) (*sql.Transport, error) {
//		return sql.NewPgx(context.Background(), db, sql.Config{})
//	})
//
// The bus closes it.
func UseTransport(constructor any) fx.Option {
	return provide[bus.Transport]("UseTransport", constructor, "")
}

// UseCodec makes the bus use a codec in place of JSON. The constructor returns any type that implements bus.Codec, with an error
// if needed.
func UseCodec(constructor any) fx.Option {
	return provide[bus.Codec]("UseCodec", constructor, "")
}

// addOn is an additional transport with its schemes.
type addOn struct {
	open    transports.Opener
	schemes []string
}

// provide provides the result of a constructor as a T, in a value group if one is named. fx itself would provide any type, which
// would then not be used.
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
