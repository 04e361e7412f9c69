// Command leat looks after a bus beside the programs that use it.
//
//	leat poison ls        lists poisoned messages, by group, topic, type, version, class of error, text, time, key or id
//	leat poison stats     counts them by class of error
//	leat poison show      shows one: why it failed, its headers, its payload
//	leat poison replay    hands them to their own group again
//	leat poison rm        deletes them for good
//	leat poison edit      changes the payload or the headers of one
//	leat poison export    writes them as JSON lines, byte for byte
//	leat poison import    puts exported ones into a poison queue
//	leat groups           shows the groups: what waits, is delayed, in flight and poisoned, and who consumes
//	leat top              shows them again and again
//	leat topics           shows the topics that groups ask for
//	leat publish          publishes CloudEvents from a file, or one from its flags
//	leat tail             shows copies of what is published from now on
//	leat doctor           checks what the message system, the outbox and the inbox need, and says the fixes
//	leat migrate          makes the tables of a database that is to be a bus, or brings them up to date
//
// The flag --url or the variable LEAT_URL names the message system as it does for a service. A service whose
// transport is in memory is reached by its admin endpoint: unix:///run/shop/leat.sock where the service has
// LEAT_ADMIN=/run/shop/leat.sock, and https://host:port or, on the same machine, http://127.0.0.1:7070, with the token in
// LEAT_ADMIN_TOKEN. A service's own binary may have the same commands; see package fxmodule/cli.
//
// An outbox is a group of its own database, <service>.outbox: what the message system never takes is its
// poison. It is reached by that database's URL, as in leat poison ls --url "$LEAT_OUTBOX_URL", and shown among
// the others by the service's own binary and its admin endpoint. The doctor looks at the databases of
// LEAT_OUTBOX_URL and LEAT_INBOX_URL, too: tables and their version, rights, what waits and since when.
//
// A replay moves a message to its group and takes it out of the poison queue when it is safe there. One
// that is interrupted, even by kill -9, is run again for what is left: no message is lost, and dedup knows
// those that were in both places. With --count it only counts.
//
// Lists are tables for people and, with --json, JSON lines with stable fields for scripts; unknown counts
// are null. A poisoned message has the fields id, group, topic, event_id, source, type, version, key, class,
// error, attempts, tries, first_at, failed_at, at, trace_id, handler, host, pid, build and parked; in show and
// export, chain, stack, uuid, headers and data too, or headers_base64 and data_base64 for what is not valid
// UTF-8.
//
// The exit status is 0 when all is well, 1 when something failed or doctor found something wrong, and 2
// when the command line or the URL is wrong. Results go to the standard output, everything else to the
// standard error, and passwords nowhere.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	kongcompletion "github.com/jotaen/kong-completion"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/internal/cli"
	"github.com/leatbus/leat/transports/sql"
	_ "github.com/leatbus/leat/transports/sqlite"
)

// commands are the commands, each in a file of its own.
type commands struct {
	cli.Commands `embed:""`

	Migrate    migrate                   `cmd:"" help:"See to the tables of a database that is a bus."`
	Completion kongcompletion.Completion `cmd:"" help:"Print what a shell needs to complete these commands: bash, zsh or fish."`

	Target target `embed:""`
}

const description = `Look after a bus beside the programs that use it. With --version alone, print the version.

The exit status is 0 when all is well, 1 when something failed, and 2 when the command line or the URL is wrong.`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// run returns the exit status.
func run(ctx context.Context, args []string) int {
	var c commands
	e := &cli.Env{Program: "leat", Version: version(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, OpenDatabase: sql.Open}
	e.Open = func(ctx context.Context) (bus.Transport, error) { return c.Target.open(ctx, e) }
	return cli.Run(ctx, &c, e, description, args, &c.Target)
}

// version returns the version of the module that the program was built from.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
