//go:build unix

package amqp_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// watchdog is a process that outlives the tests by a moment: when they end without a word, by a panic, a
// timeout or a kill, it ends the sessions that they have started, and removes their directory.
type watchdog struct {
	cmd   *exec.Cmd
	leash io.WriteCloser // the tests' end of its standard input, which closes with them
}

// watchdogScript keeps the last sessions it was told of. A line of "-" says that all is over.
const watchdogScript = `
sessions=
while read -r line; do sessions=$line; done
[ "$sessions" = - ] && exit
for s in $sessions; do kill -s KILL -- "-$s"; done
rm -rf -- "$1"
`

func newWatchdog(t testing.TB, dir string) *watchdog {
	w := &watchdog{cmd: exec.Command("/bin/sh", "-c", watchdogScript, "watchdog", dir)}
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's Ctrl-C is not for it
	var err error
	w.leash, err = w.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, w.cmd.Start())
	return w
}

// watch names the sessions to end, by their leaders. They take the place of those named before.
func (w *watchdog) watch(t testing.TB, leaders ...*exec.Cmd) {
	line := ""
	for _, cmd := range leaders {
		line += strconv.Itoa(cmd.Process.Pid) + " "
	}
	_, err := fmt.Fprintln(w.leash, line)
	require.NoError(t, err)
}

// dismiss is for the orderly end.
func (w *watchdog) dismiss() {
	_, _ = fmt.Fprintln(w.leash, "-")
	_ = w.leash.Close()
	_ = w.cmd.Wait()
}

// TestMainOfTheProcessThatPanics starts what would outlive it.
func TestMainOfTheProcessThatPanics(t *testing.T) {
	dir := os.Getenv("LEAT_TEST_PANIC_DIR")
	if dir == "" {
		t.Skip("this is the other process of TestNothingOutlivesTestsThatPanic")
	}
	w := newWatchdog(t, dir)
	sleeper := exec.Command("sleep", "1000")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	require.NoError(t, sleeper.Start())
	w.watch(t, sleeper)
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(dir), "pid"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0o600))
	panic("no cleanup runs")
}

func TestNothingOutlivesTestsThatPanic(t *testing.T) {
	place := t.TempDir()
	dir := filepath.Join(place, "broker")
	require.NoError(t, os.Mkdir(dir, 0o700))
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainOfTheProcessThatPanics$")
	cmd.Env = append(os.Environ(), "LEAT_TEST_PANIC_DIR="+dir)
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "no cleanup runs")
	text, err := os.ReadFile(filepath.Join(place, "pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
	eventually(t, "the directory is removed", func() bool {
		_, err := os.Stat(dir)
		return os.IsNotExist(err)
	})
	eventually(t, "the process is ended", func() bool { return !runs(pid) })
}

// runs reports whether a process does more than wait to be noticed as dead.
func runs(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && !strings.HasPrefix(strings.TrimSpace(string(state)), "Z")
}
