// Package cli gives a service's own binary the operators' command line of leat:
//
//	func main() {
//		cli.Main(
//			fxmodule.Module,
//			fxmodule.Handle("send-receipt", SendReceipt),
//		)
//	}
//
// The program runs as it does with fxmodule.Main, unless it has arguments: the first must be one of the commands poison,
// groups, topics, publish, tail, top and doctor, or --help. Then it does what leat does with that command, on the message
// system that the service is configured for, and consumes nothing: constructors run, and start hooks don't,
// but for a dry run.
//
//	$ shop poison stats
//	$ shop poison replay --group shop.send-receipt --dry-run
//
// The second is what only the service can do: it runs the current handlers with the dead messages and
// says how many would now succeed, by class of error. The queues stay as they are. Transactions of
// handlers.Tx are rolled back, and what handlers publish with their context is held back. Every other
// effect happens, and can't be undone: a handler that has some can ask bus.IsDryRun, and the command asks
// for confirmation.
//
// The application's start hooks run before, so that what handlers depend on is connected, and its stop
// hooks afterwards. Only the bus does not start: it consumes nothing, opens no admin endpoint, and holds back
// what the hooks publish. With --no-start no hooks run, for a service whose port is taken by the instance
// that runs.
//
// The package stands by itself so that a service without the commands does not link their command line.
package cli

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"go.uber.org/fx"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule"
	"github.com/leatbus/leat/internal/admin"
	"github.com/leatbus/leat/internal/cli"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/sql"
)

// Main runs the application with [fxmodule.Main], or the command that the program's first argument names, and exits. A program
// with arguments of its own uses [Run].
func Main(options ...fx.Option) {
	if len(os.Args) == 1 {
		fxmodule.Main(options...)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], options...)
	stop()
	os.Exit(status)
}

// names returns the commands' first words.
func names() []string {
	return []string{"poison", "groups", "topics", "publish", "tail", "top", "doctor"}
}

const description = `Look after the service's bus. Without one of these commands, the service runs.

The exit status is 0 when all is well, 1 when something failed, and 2 when the command line or the URL is wrong.`

// Run runs the command that the first argument names and returns its exit status; ok is false where it names
// none, and nothing was done. It is for programs with flags of their own; Main does for others.
func Run(ctx context.Context, args []string, options ...fx.Option) (status int, ok bool) {
	if len(args) == 0 || !slices.Contains(names(), args[0]) {
		return 0, false
	}
	return run(ctx, args, options...), true
}

func run(ctx context.Context, args []string, options ...fx.Option) (status int) {
	e := &cli.Env{
		Program: filepath.Base(os.Args[0]), Where: "the service's bus",
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, OpenDatabase: sql.Open,
	}
	e.Open = func(context.Context) (bus.Transport, error) {
		var (
			b     *bus.Bus
			stack middleware.Stack
			idle  admin.Idle
		)
		app := fx.New(fx.Options(options...), fx.NopLogger, fx.Supply(&idle), fx.Populate(&b, &stack))
		if err := app.Err(); err != nil {
			return nil, err
		}
		if idle.Transport == nil { // the bus is the application's own
			idle.Transport, idle.Outbox = b.Transport(), b.Outbox()
		}
		e.Close = b.Close
		e.Start = func(ctx context.Context) error { return start(ctx, app, e) }
		e.DryRunner = admin.NewLocalDryRunner(b, stack)
		return admin.WithOutbox(idle.Transport, idle.Outbox), nil
	}
	return cli.Run(ctx, new(cli.Commands), e, description, args)
}

// start runs the application's start hooks, and has its stop hooks run at the end.
func start(ctx context.Context, app *fx.App, e *cli.Env) error {
	starting, cancel := context.WithTimeout(ctx, app.StartTimeout())
	defer cancel()
	if err := app.Start(starting); err != nil {
		return err
	}
	e.Close = func(ctx context.Context) error { // they close the bus, too
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), app.StopTimeout())
		defer cancel()
		return app.Stop(ctx)
	}
	return nil
}
