// Package docs runs what the documents say: every command and every program.
package docs_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

// patience bounds one command, which may have to compile first.
const patience = 10 * time.Minute

// covered are commands that are not run again, with who runs them.
var covered = map[string]string{
	"go run ./internal/check": "this test runs in it",
	"make test":               "it is go run ./internal/check",
	"make unit":               "its tests are part of make test",
	"make lint":               "continuous integration runs it",
}

var (
	fence = regexp.MustCompile("(?s)```([a-z ]+)\n(.*?)```(?:\n\n<!-- prints: (.*?) -->)?")
	root  = filepath.Join("..", "..")

	benchmark = regexp.MustCompile(`-bench ([A-Za-z0-9]+\$?) -benchtime [0-9]+x`)
)

// documents are the paths of what is tested, from the root.
func documents(t *testing.T) []string {
	names := []string{"README.md", "README.zh-CN.md", "CONTRIBUTING.md", "DESIGN.md"}
	for _, pattern := range []string{"docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		require.NoError(t, err)
		for _, path := range found {
			name, err := filepath.Rel(root, path)
			require.NoError(t, err)
			names = append(names, name)
		}
	}
	return names
}

func TestEveryCommandAndProgramRuns(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles and runs programs")
	}
	done := make(map[string]bool) // translations repeat them
	for _, name := range documents(t) {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, match := range fence.FindAllStringSubmatch(string(text), -1) {
			kind, body, prints := match[1], match[2], match[3]
			if done[body] {
				continue
			}
			done[body] = true
			switch kind {
			case "console":
				for line := range strings.SplitSeq(body, "\n") {
					command, ok := strings.CutPrefix(line, "$ ")
					if short := shorten(command); ok && !done[short] {
						done[short] = true
						t.Run(name+" "+command, func(t *testing.T) { runCommand(t, command) })
					}
				}
			case "go":
				t.Run(name+" program that prints "+prints, func(t *testing.T) { runProgram(t, body, prints) })
			case "go test":
				t.Run(name+" test", func(t *testing.T) { runTest(t, body) })
			}
		}
	}
}

func TestTheDocumentsOpenNoDeadLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]*)(#[^):]*)?\)`)
	code := regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
	for _, name := range append(documents(t), "CHANGELOG.md", "SECURITY.md") {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, match := range link.FindAllStringSubmatch(code.ReplaceAllString(string(text), "code"), -1) {
			path := filepath.Join(root, filepath.Dir(name), match[1])
			if match[1] == "" {
				path = filepath.Join(root, name)
			}
			_, err := os.Stat(path)
			require.NoError(t, err, "%s links to %s", name, match[1])
			if match[2] != "" {
				target, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Contains(t, anchors(string(target)), match[2], "%s links to %s", name, match[1])
			}
		}
	}
}

// anchors are those that GitHub gives to headings.
func anchors(markdown string) (found []string) {
	heading := regexp.MustCompile("(?m)^#+ (.*)$")
	dropped := regexp.MustCompile(`[^\p{L}\p{N}\- ]`)
	for _, match := range heading.FindAllStringSubmatch(markdown, -1) {
		text := dropped.ReplaceAllString(strings.ToLower(match[1]), "")
		found = append(found, "#"+strings.ReplaceAll(text, " ", "-"))
	}
	return found
}

func runCommand(t *testing.T, command string) {
	if why, ok := covered[command]; ok {
		t.Skip(why)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", shorten(command))
	cmd.Dir = root
	measures := benchmark.MatchString(command)
	if measures && !strings.Contains(command, "internal/testservices") {
		cmd.Env = withoutLeat(os.Environ()) // a reader has no services
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if measures {
		require.Regexp(t, `(?m)^Benchmark`, string(out), "it prints no figures")
	}
}

// quick are the benchmarks of which a round takes seconds.
var quick = []string{"PublishToHandler", "LatencyAt10k", "AMQPPublish$"}

// shorten lets a benchmark run one round: its figures need more, but that it prints any does not. Where even that takes minutes, the
// benchmark is only listed: it is compiled, by a command that finds its services.
func shorten(command string) string {
	match := benchmark.FindStringSubmatch(command)
	switch {
	case match == nil:
		return command
	case slices.Contains(quick, match[1]):
		return strings.Replace(command, match[0], "-bench "+match[1]+" -benchtime 1x", 1)
	default:
		return strings.Replace(command, match[0], "-list "+match[1], 1)
	}
}

// listening is the part of a program that does what [testenv.OutliveInterrupt] does, which a program
// outside the module can't call.
const listening = `package main

import (
	"os"
	"os/signal"
)

func init() { signal.Notify(make(chan os.Signal, 1), os.Interrupt) }
`

// runProgram builds a program, waits until it prints what it should, and stops it like Ctrl-C does.
func runProgram(t *testing.T, source, prints string) {
	require.NotEmpty(t, prints, "say in a comment behind the program what it prints")
	dir := t.TempDir()
	file, early, binary := filepath.Join(dir, "main.go"), filepath.Join(dir, "listening.go"), filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
	require.NoError(t, os.WriteFile(early, []byte(listening), 0o600))
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, file, early)
	build.Dir = root
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary)
	cmd.Env = append(withoutLeat(os.Environ()), "LEAT_URL=memory://")
	seen := &watcher{want: prints, found: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = seen, seen
	require.NoError(t, cmd.Start())
	select {
	case <-seen.found:
	case <-ctx.Done():
		t.Errorf("it did not print %q", prints)
	}
	require.NoError(t, testenv.Interrupt(cmd), "%s", seen.buf.String())
}

func runTest(t *testing.T, source string) {
	file := filepath.Join(t.TempDir(), "shop_test.go")
	require.NoError(t, os.WriteFile(file, []byte(source), 0o600))
	cmd := exec.CommandContext(t.Context(), "go", "test", file)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func withoutLeat(environ []string) (kept []string) {
	for _, entry := range environ {
		if !strings.HasPrefix(entry, "LEAT_") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// watcher sees when a text has been written. exec writes from one goroutine at a time.
type watcher struct {
	want  string
	found chan struct{}
	buf   bytes.Buffer
	done  bool
}

func (w *watcher) Write(p []byte) (int, error) {
	n, err := w.buf.Write(p)
	if !w.done && strings.Contains(w.buf.String(), w.want) {
		w.done = true
		close(w.found)
	}
	return n, err
}
