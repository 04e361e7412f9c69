package fxmodule

import (
	"context"
	"log/slog"
	"os"
	"time"

	"go.uber.org/dig"
	"go.uber.org/fx"

	"github.com/leatbus/leat/bus/driver"
)

// Main runs an application until it is stopped by a signal or fx.Shutdowner, as fx.New(options...).Run() does, and then exits. If
// the application fails to start or to stop, Main logs the root cause in one line and exits with status 1; a shutdown with
// another status exits with that. fx's own log is off, unless the options have an fx.WithLogger. All stop hooks together have
// 25 seconds, unless the options have an fx.StopTimeout: enough for the default drain timeout, and less than the default grace
// period of Kubernetes.
func Main(options ...fx.Option) {
	if status := run(options...); status != 0 {
		os.Exit(status)
	}
}

// run runs the application and returns the exit status.
func run(options ...fx.Option) int {
	app := fx.New(append([]fx.Option{fx.NopLogger, fx.StopTimeout(stopTimeout)}, options...)...)
	if err := app.Err(); err != nil {
		return failed("leat: the application could not be built", err)
	}
	starting, cancel := context.WithTimeout(context.Background(), app.StartTimeout())
	defer cancel()
	stop := app.Wait() // before the start, so that no signal is missed
	if err := app.Start(starting); err != nil {
		_ = app.Stop(starting) // fx has stopped what was started, and still waits for signals
		return failed("leat: the application could not be started", err)
	}
	signal := <-stop
	stopping, cancel := context.WithTimeout(context.Background(), app.StopTimeout())
	defer cancel()
	if err := app.Stop(stopping); err != nil {
		return failed("leat: the application could not be stopped cleanly", err)
	}
	return signal.ExitCode
}

// stopTimeout replaces fx's default of 15 s, which is shorter than the default drain timeout: handlers would be
// interrupted although their pod has time left.
const stopTimeout = 25 * time.Second

// maxRootCause bounds the line about a failed start, in bytes.
const maxRootCause = 2048

func failed(what string, err error) int {
	slog.Error(what, "error", driver.OneLine(dig.RootCause(err).Error(), maxRootCause))
	return 1
}
