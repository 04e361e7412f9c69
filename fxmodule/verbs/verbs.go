// Package verbs gives a service's own binary the operators' command line of leat:
//
//	func main() {
//		verbs.Main(
//			fxmodule.Module,
//			fxmodule.Handle("send-receipt", SendReceipt),
//		)
//	}
//
// The program runs as it does with fx.New(…).Run(), unless its first argument is one of the verbs poison,
// groups, topics, publish, tail and doctor. Then it does what leat does with that verb, on the message
// system that the service is configured for, and consumes nothing: constructors run, and start hooks don't.
//
//	$ shop poison stats
//	$ shop poison replay --group shop.send-receipt --what-if
//
// The second is what only the service can do: it runs the current handlers with the dead messages and
// says how many would now succeed, by class of error. The queues stay as they are. Transactions of
// handlers.Tx are rolled back, and what handlers publish with their context is held back. Every other
// effect happens, and can't be undone: a handler that has some can ask bus.IsRehearsal, and the verb asks
// for confirmation. Handlers whose dependencies only work after their start hooks fail here.
//
// The package stands by itself so that a service without the verbs does not link their command line.
package verbs

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/operator"
	"github.com/leatbus/leat/internal/verbs"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/sql"
)

// Main runs the application, or the verb that the program's first argument names. It does not return from
// a verb.
func Main(options ...fx.Option) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status, ok := Run(ctx, os.Args[1:], options...)
	stop()
	if ok {
		os.Exit(status)
	}
	fx.New(options...).Run()
}

// names are the verbs' first words.
func names() []string { return []string{"poison", "groups", "topics", "publish", "tail", "doctor"} }

const description = `Look after the service's bus. Without one of these commands, the service runs.

The exit status is 0 when all is well, 1 when something failed, and 2 when the command line or the URL is wrong.`

// Run runs the verb that the first argument names and returns its exit status; ok is false where it names
// none, and nothing was done. It is for programs with flags of their own; Main does for others.
func Run(ctx context.Context, args []string, options ...fx.Option) (status int, ok bool) {
	if len(args) == 0 || !slices.Contains(names(), args[0]) {
		return 0, false
	}
	e := &verbs.Env{
		Program: filepath.Base(os.Args[0]), Where: "the service's bus",
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, OpenDatabase: sql.Open,
	}
	e.Open = func(context.Context) (bus.Transport, error) {
		var (
			b     *bus.Bus
			stack middleware.Stack
		)
		app := fx.New(fx.Options(options...), fx.NopLogger, fx.Populate(&b, &stack))
		if err := app.Err(); err != nil {
			return nil, err
		}
		e.Close = b.Close
		e.Rehearser = operator.NewRehearser(b, stack)
		return operator.WithOutbox(b), nil
	}
	return verbs.Run(ctx, new(verbs.Verbs), e, description, args), true
}
