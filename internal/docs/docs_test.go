// Package docs runs every command and every program of the documents.
package docs_test

import (
	"bytes"
	"context"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert/yaml"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/internal/testenv"
)

// patience bounds one command, which may have to compile first.
const patience = 10 * time.Minute

// covered has commands that are not run here, and where they are run.
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

// documents returns the paths of the tested documents, relative to the root.
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

func TestDocs_commandsAndProgramsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles and runs programs")
	}
	bin := t.TempDir()
	done := make(map[string]bool) // translations repeat them
	once := func(scope, what string) bool {
		first := !done[scope+what]
		done[scope+what] = true
		return first
	}
	for _, name := range documents(t) {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		p := page{bin: bin, dir: t.TempDir(), env: withoutLeat(os.Environ())}
		for _, match := range fence.FindAllStringSubmatch(string(text), -1) {
			kind, body, prints := match[1], match[2], match[3]
			if kind == "sh" {
				p.export(t, body)
				continue
			}
			scope := ""
			if p.exports { // the same command is another one on another page
				scope = filepath.Base(name)
			}
			if !once(scope, body) {
				continue
			}
			switch kind {
			case "console":
				for _, c := range commands(body) {
					if p.exports || once("", shorten(c.line)) { // where there is a state, a command may be there twice
						t.Run(name+" "+c.line, func(t *testing.T) { p.runCommand(t, c) })
					}
				}
			case "go":
				t.Run(name+" program that prints "+prints, func(t *testing.T) { p.runProgram(t, body, prints) })
			case "go test":
				t.Run(name+" test", func(t *testing.T) { runTest(t, body) })
			case "yaml":
				require.NoError(t, yaml.Unmarshal([]byte(body), new(any)), name)
			}
		}
	}
}

// page has the state that the commands and programs of one document share.
type page struct {
	bin string   // has the command leat, all pages' in common
	dir string   // stands for /tmp
	env []string // without leat's variables but those that the page exports

	exports bool
}

// export takes the variables of a block of "export NAME=value" lines.
func (p *page) export(t *testing.T, body string) {
	p.exports = true
	for line := range strings.Lines(body) {
		variables, ok := strings.CutPrefix(strings.TrimSpace(line), "export ")
		require.True(t, ok, "a block of sh has only exports, not %q", line)
		p.env = append(p.env, strings.Fields(p.local(variables))...)
	}
}

// local replaces /tmp by the page's own directory, since another run may have left files in /tmp.
func (p *page) local(text string) string { return strings.ReplaceAll(text, "/tmp/", p.dir+"/") }

// command is a line of a console block, with what it prints.
type command struct {
	line   string
	prints []string
}

// commands returns the commands of a console block. The lines after a command are its output; "…" matches anything.
func commands(body string) (all []command) {
	for line := range strings.SplitSeq(strings.TrimSuffix(body, "\n"), "\n") {
		if c, ok := strings.CutPrefix(line, "$ "); ok {
			all = append(all, command{line: c})
		} else if n := len(all); n > 0 {
			all[n-1].prints = append(all[n-1].prints, line)
		}
	}
	return all
}

// pattern returns a pattern for a line of output. It ignores the width of columns.
func pattern(line string) string {
	quoted := strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*")
	return strings.Join(strings.Fields(quoted), `\s+`)
}

// leat builds the command once.
func (p *page) leat(t *testing.T) {
	binary := filepath.Join(p.bin, "leat")
	if _, err := os.Stat(binary); err == nil {
		return
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/leat")
	build.Dir = root
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestDocs_programsAreFormatted(t *testing.T) {
	for _, name := range documents(t) {
		text, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, match := range fence.FindAllStringSubmatch(string(text), -1) {
			if kind, body := match[1], match[2]; kind == "go" || kind == "go test" {
				formatted, err := format.Source([]byte(body))
				require.NoError(t, err, name)
				require.Equal(t, string(formatted), body, name)
			}
		}
	}
}

func TestDocs_linksAreValid(t *testing.T) {
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

// anchors returns the anchors that GitHub gives to headings.
func anchors(markdown string) (found []string) {
	heading := regexp.MustCompile("(?m)^#+ (.*)$")
	dropped := regexp.MustCompile(`[^\p{L}\p{N}\- ]`)
	for _, match := range heading.FindAllStringSubmatch(markdown, -1) {
		text := dropped.ReplaceAllString(strings.ToLower(match[1]), "")
		found = append(found, "#"+strings.ReplaceAll(text, " ", "-"))
	}
	return found
}

func (p *page) runCommand(t *testing.T, c command) {
	if why, ok := covered[c.line]; ok {
		t.Skip(why)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", p.local(shorten(c.line)))
	cmd.Dir = root
	measures := benchmark.MatchString(c.line)
	switch {
	case p.exports:
		p.leat(t)
		cmd.Env = append(slices.Clone(p.env), "PATH="+p.bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	case measures && !strings.Contains(c.line, "internal/testservices"):
		cmd.Env = withoutLeat(os.Environ()) // a reader has no services
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if measures {
		require.Regexp(t, `(?m)^Benchmark`, string(out), "it prints no figures")
	}
	for _, line := range c.prints {
		require.Regexp(t, `(?m)^\s*`+pattern(line)+`\s*$`, string(out))
	}
}

// quick has the benchmarks whose rounds take seconds.
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

// runProgram builds a program, waits until it has printed all that it should, in any order and separated by " | ", and stops
// it like Ctrl-C does.
func (p *page) runProgram(t *testing.T, source, prints string) {
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
	cmd.Env = append([]string{"LEAT_URL=memory://"}, p.env...)
	seen := &watcher{want: strings.Split(prints, " | "), found: make(chan struct{})}
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
	cmd := exec.CommandContext(t.Context(), "go", "test", "-bench", ".", "-benchtime", "1x", file)
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

// watcher sees when some texts have been written. exec writes from one goroutine at a time.
type watcher struct {
	want  []string
	found chan struct{}
	buf   bytes.Buffer
	done  bool
}

func (w *watcher) Write(p []byte) (int, error) {
	n, err := w.buf.Write(p)
	missing := func(text string) bool { return !strings.Contains(w.buf.String(), text) }
	if !w.done && !slices.ContainsFunc(w.want, missing) {
		w.done = true
		close(w.found)
	}
	return n, err
}
