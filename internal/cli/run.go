package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/alecthomas/kong"
	kongcompletion "github.com/jotaen/kong-completion"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// Exit statuses.
const (
	ExitFailed = 1 // something failed, or doctor has found an error
	ExitUsage  = 2 // the command line or the URL is wrong
)

// Commands has the commands that work on any message system. Embed it in a grammar of kong.
type Commands struct {
	Poison   poison   `cmd:"" help:"Work with poisoned messages."`
	Groups   groups   `cmd:"" help:"Show the groups, and how many messages each has."`
	Topics   topics   `cmd:"" help:"Show the topics that groups subscribe to."`
	Publish  publish  `cmd:"" help:"Publish CloudEvents."`
	Tail     tail     `cmd:"" help:"Show copies of the messages that are published from now on."`
	Top      top      `cmd:"" help:"Show the groups repeatedly."`
	Describe describe `cmd:"" help:"Show the parts of a service: transport, handlers, their stack."`
	Doctor   doctor   `cmd:"" help:"Check the message system, and print the fixes."`
	Console  console  `cmd:"" help:"Serve a console for a browser on this machine."`
}

// Env has what commands need.
type Env struct {
	Program        string // as the user calls it
	Version        string // of the program leat; "" for a service's own binary
	Where          string // the message system, without its secrets
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Open opens the message system. The command closes it.
	Open func(ctx context.Context) (driver.Transport, error)
	// OpenProcess connects to the admin endpoint of the service's running process, for commands that work on a process; nil if
	// Open may do so. The command closes the connection.
	OpenProcess func(ctx context.Context) (driver.Transport, error)
	// OpenOwn opens the message system of a service's own binary for commands that work on this process, also if Open connects
	// to the running one because the message system is inside it; nil means Open.
	OpenOwn func(ctx context.Context) (driver.Transport, error)
	// Close closes what Open has opened; nil means the transport's Close.
	Close func(ctx context.Context) error
	// OpenDatabase opens the database of an outbox or an inbox for doctor. It creates nothing.
	OpenDatabase func(ctx context.Context, u *url.URL) (driver.Transport, error)
	// Start starts what the program's own handlers need for the DryRunner, and Close stops it; nil if there is
	// nothing to start.
	Start func(ctx context.Context) error
	// DryRunner has the program's own handlers once Open has returned; nil if it has none.
	DryRunner admin.DryRunner
	// Check returns an error if a handler of the program would refuse a message; nil if the program has no handlers.
	Check func(msg *message.Message) error
	// Describer describes the program's own service once Open has returned; nil if it has none.
	Describer admin.Describer
}

// A UsageError is a mistake in the command line or the URL.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

func usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// errQuiet is returned for a failure that the command has already printed.
var errQuiet = errors.New("reported already")

// Run parses the arguments into a grammar of kong, runs the command, and returns the exit status.
func Run(ctx context.Context, grammar any, e *Env, description string, args []string, bind ...any) int {
	e.Stdout, e.Stderr = newTextWriter(e.Stdout), newTextWriter(e.Stderr)
	parser, err := kong.New(grammar, kong.Name(e.Program), kong.Description(description), kong.Writers(e.Stdout, e.Stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		panic(err) // the grammar is wrong
	}
	if e.Version != "" && slices.Equal(args, []string{"--version"}) {
		fmt.Fprintln(e.Stdout, e.Program, e.Version)
		return 0
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	if e.Version != "" {
		kongcompletion.Register(parser)
	}
	parsed, err := parser.Parse(args)
	if group, ok := withoutCommand(err); ok {
		_ = group.PrintUsage(false)
		return ExitUsage
	}
	if err != nil {
		err = withPlaceOfFlag(parser.Model, e.Program, err)
		fmt.Fprintf(e.Stderr, "%s: %s\n%s --help shows the commands.\n", e.Program, redactArgument(err.Error()), e.Program)
		return ExitUsage
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(append(bind, e)...)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errQuiet):
		return ExitFailed
	}
	text, status := err.Error(), ExitUsage
	if !isUsage(err) {
		text, status = redactURL(err.Error()), ExitFailed
	}
	fmt.Fprintf(e.Stderr, "%s: %s: %s\n", e.Program, parsed.Selected().Path(), text)
	return status
}

// withPlaceOfFlag says where a flag belongs that stands before its command.
func withPlaceOfFlag(grammar *kong.Application, program string, err error) error {
	wrong, ok := errors.AsType[*kong.ParseError](err)
	if !ok || wrong.Context.Selected() != nil {
		return err
	}
	found := regexp.MustCompile(`^unknown flag --([\w-]+)`).FindStringSubmatch(err.Error())
	if found == nil {
		return err
	}
	for _, command := range grammar.Leaves(true) {
		if slices.ContainsFunc(command.Flags, func(f *kong.Flag) bool { return f.Name == found[1] }) {
			return fmt.Errorf("the flag --%s belongs to a command; write it behind the command: %s <command> --%s", found[1], program, found[1])
		}
	}
	return err
}

// withoutCommand reports whether the arguments have a group of commands, such as poison, without one of its commands.
func withoutCommand(err error) (group *kong.Context, ok bool) {
	wrong, ok := errors.AsType[*kong.ParseError](err)
	if !ok || len(wrong.Context.Args) == 0 {
		return nil, false
	}
	node := wrong.Context.Selected()
	return wrong.Context, node != nil && len(node.Children) > 0 && wrong.Context.Args[len(wrong.Context.Args)-1] == node.Name
}

// redactURL removes the user part of URLs in a text. leat's own errors have none, but those of libraries may.
func redactURL(text string) string {
	return regexp.MustCompile(`://\S*@`).ReplaceAllString(text, "://…@")
}

// redactArgument removes possible secrets from a text that has an argument, such as a URL in the wrong place: everything
// from the // to the last @, and options.
func redactArgument(text string) string {
	text = regexp.MustCompile(`://.*@`).ReplaceAllString(text, "://…@")
	return regexp.MustCompile(`(://[^\s?#]*)[?#]\S*`).ReplaceAllString(text, "$1?…")
}
