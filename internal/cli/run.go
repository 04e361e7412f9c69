package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"

	"github.com/alecthomas/kong"
	kongcompletion "github.com/jotaen/kong-completion"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

// Exit statuses.
const (
	ExitFailed = 1 // something failed, or is wrong
	ExitUsage  = 2 // the command line or the URL is wrong
)

// Commands are the commands that work on any message system, to embed in a grammar of kong.
type Commands struct {
	Poison  poison  `cmd:"" help:"Work with the messages that will not succeed."`
	Groups  groups  `cmd:"" help:"Show the groups, and how many messages each has."`
	Topics  topics  `cmd:"" help:"Show the topics that groups ask for."`
	Publish publish `cmd:"" help:"Publish CloudEvents."`
	Tail    tail    `cmd:"" help:"Show what is published from now on. It takes nothing from anybody."`
	Top     top     `cmd:"" help:"Show the groups again and again."`
	Doctor  doctor  `cmd:"" help:"Check what the message system needs, and say the fixes."`
}

// Env is what commands work with.
type Env struct {
	Program        string // how the user calls it
	Version        string // of the program, which is nothing but these commands; "" for a service's own binary
	Where          string // the message system, without its secrets
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Open opens the message system. The command closes it.
	Open func(ctx context.Context) (driver.Transport, error)
	// Close closes it; nil for the transport's own Close.
	Close func(ctx context.Context) error
	// OpenDatabase opens the database of an outbox or an inbox for doctor, and makes nothing in it.
	OpenDatabase func(ctx context.Context, u *url.URL) (driver.Transport, error)
	// Start gets the program's own handlers ready for the DryRunner, and Close ends it; nil where there is
	// nothing to start.
	Start func(ctx context.Context) error
	// DryRunner has the program's own handlers once Open has returned; nil where it has none.
	DryRunner admin.DryRunner
}

// UsageError is a mistake in the command line or the URL.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

func usage(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// errQuiet is a failure that the command has reported already.
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
		fmt.Fprintf(e.Stderr, "%s: %s\n%s --help shows what there is.\n", e.Program, redactArgument(err.Error()), e.Program)
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

// withoutCommand reports whether the arguments name a group of commands, such as poison, and none of its commands.
func withoutCommand(err error) (group *kong.Context, ok bool) {
	wrong, ok := errors.AsType[*kong.ParseError](err)
	if !ok || len(wrong.Context.Args) == 0 {
		return nil, false
	}
	node := wrong.Context.Selected()
	return wrong.Context, node != nil && len(node.Children) > 0 && wrong.Context.Args[len(wrong.Context.Args)-1] == node.Name
}

// redactURL takes the user part out of URLs in a text. leat's own errors show none; this is for those of others.
func redactURL(text string) string {
	return regexp.MustCompile(`://\S*@`).ReplaceAllString(text, "://…@")
}

// redactArgument takes what may be secret out of a text that repeats an argument, such as a URL in the wrong place: all
// from the // to the last @, and options.
func redactArgument(text string) string {
	text = regexp.MustCompile(`://.*@`).ReplaceAllString(text, "://…@")
	return regexp.MustCompile(`(://[^\s?#]*)[?#]\S*`).ReplaceAllString(text, "$1?…")
}
