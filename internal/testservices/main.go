package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/redis/go-redis/v9/logging"
)

// Exit codes of testservices itself; otherwise it has the command's.
const (
	exitUsage   = 2
	exitMissing = 3   // a service could not be had
	exitNoStart = 127 // the command could not be started; the shell's convention
)

func main() {
	logging.Disable() // go-redis would log each failed attempt to connect
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	s := session{table: services(), ground: newGround(os.Stderr), stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(s.run(signals, os.Args[1:]))
}

// session is one run of the program.
type session struct {
	table          []service
	ground         *ground
	stdout, stderr io.Writer
}

// run returns the exit code.
func (s *session) run(signals <-chan os.Signal, args []string) int {
	opts, err := parse(args, s.table, s.stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(s.stderr, err)
		return exitUsage
	}
	ctx, end := context.WithCancelCause(context.Background())
	defer end(nil)
	go onSignal(ctx, signals, end)

	found, err := resolve(ctx, opts.services, s.ground.steps(opts.private), func(a answer) { report(s.stderr, a) })
	if err == nil && opts.keep {
		defer func() { exports(s.stdout, found, s.ground.stopCommands()) }()
	} else {
		defer s.close()
	}
	if why, ok := errors.AsType[interrupted](err); ok {
		return why.exitCode()
	}
	missing, ok := errors.AsType[*missingError](err)
	if err != nil {
		fmt.Fprintln(s.stderr, err)
	}
	if err != nil && (!ok || !opts.optional) {
		return exitMissing
	}
	if len(opts.command) == 0 {
		return 0
	}
	code := runCommand(ctx, opts.command, environ(found), s.stdout, s.stderr)
	if missing != nil {
		fmt.Fprintf(s.stderr, "testservices: without %s: the tests that need them were skipped\n", joinNames(missing.services))
	}
	return code
}

// close stops what was started, and reports what could not be stopped. That does not change the exit code.
func (s *session) close() {
	if err := s.ground.close(); err != nil {
		fmt.Fprintln(s.stderr, "testservices: stop what was started:", err)
	}
}

// options has the command line's options.
type options struct {
	services []service
	private  bool
	keep     bool
	optional bool
	command  []string
}

func parse(args []string, table []service, stderr io.Writer) (options, error) {
	flags := flag.NewFlagSet("testservices", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: go run ./internal/testservices [flags] -- command [argument ...]\n\n"+
			"Finds or starts the servers of leat's tests, then runs the command against them.")
		flags.PrintDefaults()
	}
	names := flags.String("services", "", "comma-separated services that are wanted (default "+joinNames(table)+")")
	private := flags.Bool("private", false, "start private servers, whatever runs here or is named in the environment")
	keep := flags.Bool("keep", false, "leave what was started up, and print export lines for the shell")
	optional := flags.Bool("optional", false, "run the command also without the services that can't be had")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	chosen, err := choose(table, *names)
	if err != nil {
		return options{}, err
	}
	if flags.NArg() == 0 && !*keep {
		return options{}, errors.New("testservices: no command; give one, like: go run ./internal/testservices -- go test")
	}
	return options{services: chosen, private: *private, keep: *keep, optional: *optional, command: flags.Args()}, nil
}

// ground has the environment of servers that this run starts.
type ground struct {
	containers *containers
	yard       *yard
	debian     *debian
}

func newGround(progress io.Writer) *ground {
	aptGet, _ := exec.LookPath("apt-get") // "" if there is none
	return &ground{
		containers: &containers{run: runProgram, project: fmt.Sprintf("leat-test-%d", os.Getpid())},
		yard:       &yard{find: findProgram},
		debian: &debian{
			run: runProgram, root: os.Geteuid() == 0, aptGet: aptGet,
			policy: "/usr/sbin/policy-rc.d", progress: progress,
		},
	}
}

// steps returns the order of the search.
func (g *ground) steps(private bool) []step {
	own := []step{g.yard.fromInstalled, g.debian.fromPackages(g.yard.fromInstalled)}
	if private {
		return own
	}
	return append([]step{fromEnvironment(os.Getenv), fromStandardPort, g.containers.fromContainers}, own...)
}

func (g *ground) close() error { return errors.Join(g.containers.close(), g.yard.close()) }

func (g *ground) stopCommands() []string {
	return append(g.containers.stopCommands(), g.yard.stopCommands()...)
}
