package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// sandbox has the directory, the account and the environment of one private
// server.
type sandbox struct {
	find     func(program string) (path string, err error)
	dir      string
	account  *user.User // nil means the user of this program
	env      []string
	stopWith syscall.Signal

	processes []*process
}

// path returns the path of a file in the sandbox.
func (b *sandbox) path(name string) string { return filepath.Join(b.dir, name) }

func (b *sandbox) write(name, content string) (path string, err error) {
	path = b.path(name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		return "", err
	}
	return path, b.own(path)
}

func (b *sandbox) own(path string) error {
	if b.account == nil {
		return nil
	}
	uid, gid, err := ids(b.account)
	if err != nil {
		return err
	}
	return os.Chown(path, int(uid), int(gid))
}

// run runs a program to its end.
func (b *sandbox) run(ctx context.Context, program string, args ...string) error {
	p, err := b.begin(program, args)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.stop(syscall.SIGTERM)
		return context.Cause(ctx)
	}
	if !p.cmd.ProcessState.Success() {
		return fmt.Errorf("%s: %s%s", p.name, p.cmd.ProcessState, p.tail())
	}
	return nil
}

// launch starts a program that runs until the sandbox is stopped.
func (b *sandbox) launch(program string, args ...string) error {
	p, err := b.begin(program, args)
	if err != nil {
		return err
	}
	b.processes = append(b.processes, p)
	return nil
}

func (b *sandbox) begin(program string, args []string) (*process, error) {
	path, err := b.find(program)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...) //nolint:gosec // programs and arguments come from the table
	cmd.Dir, cmd.Env = b.dir, b.env
	if err := detach(cmd, b.account); err != nil {
		return nil, err
	}
	return startProcess(cmd, b.path(filepath.Base(path)+".log"))
}

// await blocks until the server answers or one of its processes ends.
func (b *sandbox) await(ctx context.Context, s service, url string) (version string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, p := range b.processes {
		go func() {
			select {
			case <-p.done:
				cancel(fmt.Errorf("%s ended before it answered: %s", p.name, p.cmd.ProcessState))
			case <-ctx.Done():
			}
		}()
	}
	err = poll(ctx, func(ctx context.Context) error {
		version, err = greet(ctx, s, url)
		return err
	})
	if err == nil {
		return version, nil
	}
	var tails strings.Builder
	for _, p := range b.processes {
		tails.WriteString(p.tail())
	}
	return "", fmt.Errorf("%w%s", err, tails.String())
}

func (b *sandbox) stop() {
	for _, p := range slices.Backward(b.processes) {
		p.stop(b.stopWith)
	}
}

// freePorts returns n distinct ports that were free a moment ago.
func freePorts(n int) ([]int, error) {
	ports := make([]int, n)
	for i := range ports {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close() // at the end, so that no port is given twice
		ports[i] = listener.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

func firstAccount(names ...string) *user.User {
	for _, name := range names {
		if account, err := user.Lookup(name); err == nil {
			return account
		}
	}
	return nil
}
