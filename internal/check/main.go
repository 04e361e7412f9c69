// Command check runs the tests of every module of this repository:
//
//	go run ./internal/check
//
// It needs nothing but Go. Command testservices finds or starts the servers that the tests talk to; tests whose server can't be had
// are skipped, and a line says which server is missing and how to get it. Tests run with the race detector where the race detector
// can be built, which takes a C compiler. The last line says whether all tests passed, and whether without the race detector.
//
// With CI=true nothing may be left out: a server that can't be had is a failure, and so is a run without the race detector. Root on
// Debian or Ubuntu installs the C compiler then. The tests get servers of their own, which nobody else uses and whose data need not
// reach a disk; if a LEAT_TEST_*_URL variable names a server, they get what testservices finds.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// compiler has the Debian packages that the race detector needs.
const compiler = "gcc libc6-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	aptGet, _ := exec.LookPath("apt-get") // "" if there is none
	found, err := modules(".")
	c := check{modules: found, ci: os.Getenv("CI") == "true", named: namesServers(os.Environ()), install: os.Geteuid() == 0 && aptGet != "", run: run, probe: buildRace, out: os.Stderr}
	if err == nil {
		err = c.all(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		os.Exit(1)
	}
}

// check is one run of the program.
type check struct {
	modules []string
	ci      bool // nothing may be left out
	named   bool // the environment names servers
	install bool // apt-get may be called
	run     func(ctx context.Context, program string, args ...string) error
	probe   func(ctx context.Context, binary string) error // builds something with the race detector
	out     io.Writer
}

// all returns nil if all tests passed, and has written the last line then.
func (c *check) all(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "leat-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	services := filepath.Join(dir, "testservices")
	if err := c.run(ctx, "go", "build", "-o", services, "./internal/testservices"); err != nil {
		return fmt.Errorf("run this in the repository's root: %w", err)
	}
	noRace, err := c.race(ctx, filepath.Join(dir, "race"))
	if err != nil {
		return err
	}
	err = c.run(ctx, services, c.arguments(noRace == nil)...)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	if err != nil {
		return fmt.Errorf("the tests failed: %w", err)
	}
	if noRace != nil {
		fmt.Fprintf(c.out, "check: the tests passed, but without the race detector: %v\n"+
			"  it needs a C compiler (on Debian: apt-get install --no-install-recommends %s)\n", noRace, compiler)
		return nil
	}
	fmt.Fprintln(c.out, "check: the tests passed, with the race detector")
	return nil
}

// race returns why programs can't be built with the race detector, or nil if they can.
func (c *check) race(ctx context.Context, binary string) (why, err error) {
	why = c.probe(ctx, binary)
	if why != nil && c.ci && c.install {
		if err := c.run(ctx, "apt-get", "-q", "update"); err != nil {
			return why, err
		}
		args := append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "install", "-y", "--no-install-recommends"}, strings.Fields(compiler)...)
		if err := c.run(ctx, "env", args...); err != nil {
			return why, err
		}
		why = c.probe(ctx, binary)
	}
	if why != nil && c.ci {
		return why, fmt.Errorf("CI=true asks for the race detector, which can't be built: %w", why)
	}
	return why, ctx.Err()
}

// plainSQLite compiles SQLite, which is translated from C, without the race detector, under which it is five times slower. It
// applies to that package only: the linker keeps one copy of each generic function, for example of sync.Map. A copy from a package
// without the detector would hide the synchronization of other packages from it.
const plainSQLite = "-gcflags=modernc.org/sqlite/lib=-race=false"

// arguments returns the arguments of testservices. The tests of all modules run against the same servers.
func (c *check) arguments(race bool) (args []string) {
	switch {
	case !c.ci:
		args = append(args, "-optional")
	case !c.named:
		args = append(args, "-private")
	}
	test := " test -timeout 40m ./..."
	if race {
		test = " test -race " + plainSQLite + " -timeout 40m ./..."
	}
	commands := make([]string, len(c.modules))
	for i, module := range c.modules {
		commands[i] = "go -C " + module + test
	}
	return append(args, "--", "sh", "-c", strings.Join(commands, " && "))
}

// namesServers reports whether an environment has a variable with the URL of a server for the tests.
func namesServers(environment []string) bool {
	return slices.ContainsFunc(environment, func(variable string) bool {
		name, value, _ := strings.Cut(variable, "=")
		return strings.HasPrefix(name, "LEAT_TEST_") && strings.HasSuffix(name, "_URL") && value != ""
	})
}

// modules returns the directories with a go.mod, below root. The root comes first.
func modules(root string) (found []string, err error) {
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata"):
			return fs.SkipDir
		case entry.Name() == "go.mod":
			found = append(found, filepath.Dir(path))
		}
		return nil
	})
	slices.Sort(found)
	return found, err
}

// stopWithin is how long a program may take to end after a signal. testservices stops servers then.
const stopWithin = time.Minute

// run runs a program in the foreground, and stops it when ctx is done.
func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // programs and arguments come from this package
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopWithin
	return cmd.Run()
}

// buildRace builds this program with the race detector. Its error is the go command's last line.
func buildRace(ctx context.Context, binary string) error {
	out, err := exec.CommandContext(ctx, "go", "build", "-race", "-o", binary, "./internal/check").CombinedOutput() //nolint:gosec // a file in this program's directory
	if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); err != nil && lines[0] != "" {
		return errors.New(lines[len(lines)-1])
	}
	return err
}
