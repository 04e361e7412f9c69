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
// groups, topics, publish, tail, top, describe, doctor and console, or --help or --version. Then it runs that command of leat on the
// message system that the service is configured for, and consumes nothing: constructors run, and start hooks run only for a dry run.
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
// The commands groups pause and groups resume work on the service's running process on the same machine, through its admin endpoint:
// run them with the same LEAT_ADMIN and the other variables of the endpoint. So do all commands but describe if the transport is in
// memory, since that is inside the running process.
//
//	$ LEAT_ADMIN=/run/shop/leat.sock shop groups pause shop.send-receipt
//
// The command console serves the console of package fxmodule/console for the message system, as leat console does.
//
// It is a separate package, so that services without the commands do not link them.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.uber.org/dig"
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
	return []string{"poison", "groups", "topics", "publish", "tail", "top", "describe", "doctor", "console"}
}

const description = `Look after the service's bus. Without one of these commands, the service runs. With --version alone, print the versions of the service and of leat.

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
	if slices.Equal(args, []string{"--version"}) {
		fmt.Println(filepath.Base(os.Args[0]), version())
		return 0
	}
	e := &cli.Env{
		Program: filepath.Base(os.Args[0]), Where: "the service's bus",
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, OpenDatabase: sql.Open,
	}
	e.OpenProcess = func(ctx context.Context) (bus.Transport, error) { return openProcess(ctx, e, errNoPause, options...) }
	e.OpenOwn = func(context.Context) (bus.Transport, error) {
		var (
			b     *bus.Bus
			stack middleware.Stack
			idle  admin.Idle
		)
		app := fx.New(fx.Options(options...), fx.NopLogger, fx.Supply(&idle), fx.Populate(&b, &stack))
		if err := app.Err(); err != nil {
			return nil, dig.RootCause(err)
		}
		if idle.Transport == nil { // the application provides its own bus
			idle.Transport, idle.Outbox = b.Transport(), b.Outbox()
		}
		e.Close = b.Close
		e.Start = func(ctx context.Context) error { return start(ctx, app, e) }
		e.DryRunner, e.Describer = admin.NewLocalDryRunner(b, stack), admin.NewLocalDescriber(b, idle.Transport, stack)
		e.Check = func(msg *message.Message) error { return admin.CheckMessage(b, msg) }
		return admin.WithOutbox(idle.Transport, idle.Outbox), nil
	}
	e.Open = func(ctx context.Context) (bus.Transport, error) {
		own, err := e.OpenOwn(ctx)
		if err != nil || own.Capabilities().Durable {
			return own, err
		}
		// It is inside the service's process, and this one's is empty.
		err = e.Close(ctx)
		e.Close, e.Start, e.DryRunner, e.Describer = nil, nil, nil, nil
		if err != nil {
			return nil, err
		}
		return openProcess(ctx, e, errNotShared, options...)
	}
	return cli.Run(ctx, new(cli.Commands), e, description, args)
}

// version returns the versions of the service's module and of leat in it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	own := cmp.Or(info.Main.Version, "(devel)")
	for _, m := range info.Deps {
		if m.Path == "github.com/leatbus/leat" {
			return own + ", leat " + m.Version
		}
	}
	return own
}

// configured has the application's configuration, which is empty if the application does not use fxmodule.Module.
type configured struct {
	fx.In

	Config fxmodule.Config `optional:"true"`
}

// endpointOf returns the admin endpoint of a process with the configuration.
func endpointOf(c fxmodule.Config) admin.Endpoint {
	return admin.Endpoint{Addr: c.Admin, Token: c.AdminToken, Cert: c.AdminCert, Key: c.AdminKey}
}

// Errors for commands that work on the running process if that has no admin endpoint.
var (
	errNoPause = errors.New("a process is paused and resumed at its admin endpoint: start it with LEAT_ADMIN=/run/shop/leat.sock, and run this command " +
		"with the same LEAT_ADMIN on its machine, for each process of the group; or scale its deployment to zero")
	errNotShared = &notSharedError{}
)

// notSharedError is the error for a message system that only the service's process has.
type notSharedError struct{}

func (*notSharedError) Error() string {
	return "this transport is inside the service's process, which has no admin endpoint: start it with LEAT_ADMIN=/run/shop/leat.sock, and run this command " +
		"with the same LEAT_ADMIN on its machine"
}

// Fix returns what doctor prints.
func (*notSharedError) Fix() string { return "set LEAT_ADMIN for both, or a LEAT_URL that they share" }

// openProcess connects to the admin endpoint of the running process, or returns unreachable if that has none. It reads the
// application's configuration and constructs nothing else, so that it also works while the message system is away.
func openProcess(ctx context.Context, e *cli.Env, unreachable error, options ...fx.Option) (bus.Transport, error) {
	var config configured
	read := false
	first := fx.Module("leat-cli", fx.Invoke(func(from configured) error { // modules are invoked in their order
		config, read = from, true
		return errConfigured
	}))
	if err := fx.New(first, fx.Options(options...), fx.NopLogger).Err(); !read {
		return nil, dig.RootCause(err)
	}
	endpoint := endpointOf(config.Config)
	if endpoint.Addr == "" {
		return nil, &cli.UsageError{Err: unreachable}
	}
	u, err := endpoint.LocalURL()
	if err != nil {
		return nil, &cli.UsageError{Err: fmt.Errorf("%sADMIN: %w", fxmodule.Prefix, err)}
	}
	e.Where = u.String()
	client, err := endpoint.DialRunning(ctx)
	if err != nil {
		return nil, err
	}
	return client, nil
}

// errConfigured ends the construction of an application.
var errConfigured = errors.New("the configuration is known")

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
