package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ signal syscall.Signal }

func (e interrupted) Error() string { return "testservices: " + e.signal.String() }

// exitCode returns the exit code by the shell's convention.
func (e interrupted) exitCode() int { return 128 + int(e.signal) }

// onSignal calls end with the first signal. It blocks until there is one or ctx is done.
func onSignal(ctx context.Context, signals <-chan os.Signal, end context.CancelCauseFunc) {
	select {
	case s := <-signals:
		number, _ := s.(syscall.Signal)
		end(interrupted{number})
	case <-ctx.Done():
	}
}

// runCommand runs the command in the foreground and returns its exit code. When
// a signal ends ctx, the command and all its children get that signal, and are
// killed if they do not end in time.
func runCommand(ctx context.Context, command, env []string, stdout, stderr io.Writer) (exitCode int) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...) //nolint:gosec // running the user's command is the purpose
	cmd.Env, cmd.Stdout, cmd.Stderr = env, stdout, stderr
	group(cmd)
	cmd.Cancel = func() error { return signalGroup(cmd.Process, signalOf(ctx)) }
	cmd.WaitDelay = stopWithin
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(stderr, "testservices:", err)
		return exitNoStart
	}
	_ = cmd.Wait()                                // the outcome is read from ProcessState
	_ = signalGroup(cmd.Process, syscall.SIGKILL) // children it left behind, if any
	return exitCodeOf(cmd.ProcessState)
}

func signalOf(ctx context.Context) syscall.Signal {
	if why, ok := errors.AsType[interrupted](context.Cause(ctx)); ok {
		return why.signal
	}
	return syscall.SIGTERM
}

func exitCodeOf(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return interrupted{status.Signal()}.exitCode()
	}
	return state.ExitCode()
}
