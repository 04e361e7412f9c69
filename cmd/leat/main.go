// Command leat is the command line for operators of a bus.
//
//	leat poison ls        lists poisoned messages, by group, topic, type, version, class of error, text, time, key or id
//	leat poison stats     counts them by class of error
//	leat poison show      shows one: why it failed, its headers, its payload
//	leat poison replay    moves them back to their group
//	leat poison rm        deletes them
//	leat poison edit      changes the payload or the headers of one
//	leat poison export    writes them as JSON lines, byte for byte
//	leat poison import    puts exported ones into a poison queue
//	leat groups           shows the groups: waiting, delayed, in flight and poisoned messages, and the consumers
//	leat groups pause     stops one process, at its admin endpoint, from taking messages of groups
//	leat groups resume    lets it take them again
//	leat groups rm        deletes groups that no process consumes, with their messages
//	leat top              shows them repeatedly
//	leat topics           shows the topics that groups subscribe to
//	leat publish          publishes CloudEvents from a file, or one from its flags
//	leat tail             shows copies of the messages that are published from now on
//	leat describe         shows the parts of a service: transport, handlers, upcasters, stack, retry schedule
//	leat console          serves pages for a browser on this machine, with the same groups, poison queues and tail
//	leat doctor           checks the message system, the outbox and the inbox, and prints the fixes
//	leat migrate          creates or migrates the tables of a database
//
// The flag --url or the variable LEAT_URL is the URL of the message system, as for a service. For a service whose
// transport is in memory, use the URL of its admin endpoint: unix:///run/shop/leat.sock if the service has
// LEAT_ADMIN=/run/shop/leat.sock, and https://host:port or, on the same machine, http://127.0.0.1:7070, with the token in
// LEAT_ADMIN_TOKEN. A service's own binary may have the same commands, except migrate and completion; see package fxmodule/cli.
//
// groups pause, resume and rm are for groups of handlers. An outbox is a group of its database, <service>.outbox. Its poison
// queue has the messages that the message system has refused. Use that database's URL, as in leat poison ls --url
// "$LEAT_OUTBOX_URL". The service's own binary and its admin endpoint show it among the other groups. leat doctor also checks
// the databases of LEAT_OUTBOX_URL and LEAT_INBOX_URL: the tables and their version, the rights, and the number and age of
// waiting messages.
//
// A replay moves a message to its group, and removes it from the poison queue after the group has it. If a replay is
// interrupted, even by kill -9, run it again for the rest: no message is lost, and the dedup step drops messages that
// were in both queues. With --count it only counts.
//
// Lists are tables for people and, with --json, JSON lines with stable fields for scripts; unknown counts
// are null. groups pause, resume and rm write a line for each group with the fields group and result, which is paused,
// resumed or deleted; rm adds the messages that were lost: waiting, delayed, parked and poisoned. A poisoned message
// has the fields id, group, topic, event_id, source, type, version, key, class, error, attempts, tries, first_at,
// failed_at, at, trace_id, handler, host, pid, build and parked; in show and export, chain, stack, uuid, headers and
// data too, or headers_base64 and data_base64 for what is not valid UTF-8.
//
// The exit status is 0 when all is well, 1 when something failed or doctor found something wrong, and 2
// when the command line or the URL is wrong. Results go to the standard output, everything else to the
// standard error. Passwords are never printed.
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

// commands has the commands. Each is in its own file.
type commands struct {
	cli.Commands `embed:""`

	Migrate    migrate                   `cmd:"" help:"Create and migrate the tables of a database."`
	Completion kongcompletion.Completion `cmd:"" help:"Print the script that completes these commands in bash, zsh or fish."`

	Target target `embed:""`
}

const description = `Work on a bus as an operator. With --version alone, print the version.

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
