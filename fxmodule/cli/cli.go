// Package cli adds leat's command line for operators to a service's own binary:
//
//	func main() {
//		cli.Main(
//			fxmodule.Module,
//			fxmodule.Handle("send-receipt", SendReceipt),
//		)
//	}
//
// The program runs as it does with fxmodule.Main, unless it has arguments: the first must be one of the commands poison,
// groups, topics, publish, tail, top, describe and doctor, or --help. Then it runs that command of leat on the message
// system that the service is configured for, and consumes nothing: constructors run, and start hooks run only for
// a dry run.
//
//	$ shop poison stats
//	$ shop poison replay --group shop.send-receipt --dry-run
//
// The second command is possible only in the service: it runs the current handlers with the poisoned messages and
// prints how many would now succeed, by class of error. It does not change the queues. Transactions of
// handlers.Tx are rolled back, and messages that handlers publish with their context are discarded. Every other
// effect happens and can't be undone: a handler with such effects can call bus.IsDryRun, and the command asks
// for confirmation.
//
// The application's start hooks run before the dry run, so that dependencies of handlers are connected, and its stop
// hooks run after it. Only the bus does not start: it consumes nothing, opens no admin endpoint, and discards
// messages that hooks publish. With --no-start no hooks run, for a service whose port is used by a running
// instance.
//
// It is a separate package, so that services without the commands do not link them.
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
// with its own arguments uses [Run].
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
	return []string{"poison", "groups", "topics", "publish", "tail", "top", "describe", "doctor"}
}

const description = `Look after the service's bus. Without one of these commands, the service runs.

The exit status is 0 when all is well, 1 when something failed, and 2 when the command line or the URL is wrong.`

// Run runs the command that is the first argument and returns its exit status. ok is false, and nothing was done, if
// the first argument is not a command. Use it for programs with their own flags, and Main for others.
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
		if idle.Transport == nil { // the application provides its own bus
			idle.Transport, idle.Outbox = b.Transport(), b.Outbox()
		}
		e.Close = b.Close
		e.Start = func(ctx context.Context) error { return start(ctx, app, e) }
		e.DryRunner, e.Describer = admin.NewLocalDryRunner(b, stack), admin.NewLocalDescriber(b, idle.Transport, stack)
		return admin.WithOutbox(idle.Transport, idle.Outbox), nil
	}
	return cli.Run(ctx, new(cli.Commands), e, description, args)
}

// start runs the application's start hooks, and makes e.Close run its stop hooks.
func start(ctx context.Context, app *fx.App, e *cli.Env) error {
	starting, cancel := context.WithTimeout(ctx, app.StartTimeout())
	defer cancel()
	if err := app.Start(starting); err != nil {
		return err
	}
	e.Close = func(ctx context.Context) error { // the hooks also close the bus
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), app.StopTimeout())
		defer cancel()
		return app.Stop(ctx)
	}
	return nil
}
