package fxmodule

import (
	"context"
	"log/slog"
	"os"

	"go.uber.org/dig"
	"go.uber.org/fx"

	"github.com/leatbus/leat/bus/driver"
)

// Main runs an application until it is told to stop, as fx.New(options...).Run() does. If it fails to start or to stop,
// Main logs the root cause in one line and exits with status 1; a shutdown with another status exits with that. fx's own
// log is off, unless the options have an fx.WithLogger.
func Main(options ...fx.Option) {
	if status := run(options...); status != 0 {
		os.Exit(status)
	}
}

// run returns the exit status.
func run(options ...fx.Option) int {
	app := fx.New(append([]fx.Option{fx.NopLogger}, options...)...)
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

// maxRootCause bounds the line about a failed start, in bytes.
const maxRootCause = 2048

func failed(what string, err error) int {
	slog.Error(what, "error", driver.OneLine(dig.RootCause(err).Error(), maxRootCause))
	return 1
}
