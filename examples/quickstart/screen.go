package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/transports"
)

// Exit statuses.
const (
	exitFine       = 0 // nothing was lost
	exitLost       = 1
	exitNotStarted = 2
)

// screen shows a run: messages on stdout, errors on stderr, and on a terminal the progress, in a last line that is
// overwritten. Its methods may be called concurrently.
type screen struct {
	json     bool
	stdout   io.Writer
	stderr   io.Writer
	story    io.Writer // stdout, or nothing with -json
	terminal io.Writer // for the progress; nil if there is no terminal
	colour   bool
	began    time.Time
	samples  samples // of the outcomes

	mu       sync.Mutex
	progress string // on the terminal now
}

func newScreen(json bool, stdout, stderr io.Writer, env func(string) string) *screen {
	v := &screen{json: json, stdout: stdout, stderr: stderr, story: stdout, began: time.Now()}
	target := stdout
	if json {
		v.story, target = io.Discard, stderr
	}
	if isTerminal(target) && env("TERM") != "dumb" {
		v.terminal = target
		v.colour = env("NO_COLOR") == ""
	}
	return v
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// begin shows the handlers of the bus.
func (v *screen) begin(b *bus.Bus, s settings) {
	memory := "in memory"
	if s.redis != "" {
		memory = "in " + shown(s.redis)
	}
	v.printf(v.story, "%s · events: %s · transport: %s · duplicates: remembered %s\n\n",
		v.paint(bold, "leat quickstart"), s.source, shown(s.url), memory)
	v.table([]string{"group", "events", "versions", "order", "retries"}, func(row func(...string)) {
		for _, h := range b.Handlers() {
			events, versions := taken(h)
			policy := retries()
			if h.Retry != nil {
				policy = *h.Retry
			}
			row(h.Name, events, versions, h.Order.String(), policy.String()+", then its poison queue")
		}
	})
	v.printf(v.story, "%s\n", v.paint(dim, fmt.Sprintf("what happens, the first %d of each kind:", perKind)))
}

// taken returns the events and versions that a handler takes.
func taken(h bus.Handler) (events, versions string) {
	if len(h.Types) == 0 {
		return strings.Join(h.Topics, " "), "as they come"
	}
	var names, numbers []string
	for _, t := range h.Types {
		names = append(names, t.Name)
		numbers = append(numbers, "v"+strconv.Itoa(t.Version))
		for _, u := range upcasters() {
			if u.To == t {
				numbers = append(numbers, fmt.Sprintf("v%d is lifted", u.From.Version))
			}
		}
	}
	return strings.Join(slices.Compact(names), " "), strings.Join(numbers, ", ")
}

// end shows the report and returns the exit status. err is a failure that does not concern single messages.
func (v *screen) end(r report, err error) int {
	v.printf(v.story, "\n")
	v.table([]string{"group", "handled", "duplicates", "poisoned"}, func(row func(...string)) {
		for _, name := range r.groupNames() {
			g := r.Groups[name]
			row(name, thousands(g.Handled), thousands(g.Duplicates), thousands(g.Poisoned))
		}
	})
	v.printf(v.story, "read %s · rejected %s · published %s · unrouted %s · %s\n",
		thousands(r.Read), thousands(r.Rejected), thousands(r.Published), thousands(r.Unrouted), fmt.Sprintf("%.1fs", time.Since(v.began).Seconds()))
	if r.leftovers > 0 {
		v.printf(v.story, "%s messages of an earlier run were in the queues; they are discarded and not counted\n", thousands(r.leftovers))
	}
	if err != nil {
		v.printf(v.stderr, "quickstart: %v\n", err)
	}
	if r.Lost > 0 {
		v.printf(v.story, "%s\n", v.paint(red, "✘ "+thousands(r.Lost)+" outcomes are missing"))
	} else {
		v.printf(v.story, "%s\n\n%s", v.paint(green, "✔ every message accounted for"), hints())
	}
	if v.json {
		if writeErr := r.write(v.stdout); writeErr != nil {
			v.printf(v.stderr, "quickstart: write the report: %v\n", writeErr)
			return exitLost
		}
	}
	if r.Lost > 0 || err != nil {
		return exitLost
	}
	return exitFine
}

// hints returns how to run the program with other transports.
func hints() string {
	var text strings.Builder
	hint := func(where, setting string) {
		fmt.Fprintf(&text, "%-28s %s go run ./examples/quickstart\n", where, setting)
	}
	schemes := transports.Default().Schemes()
	if slices.Contains(schemes, "amqp") {
		hint("the same on RabbitMQ:", "LEAT_URL=amqp://guest:guest@localhost:5672/")
	}
	if slices.Contains(schemes, "postgres") {
		hint("the same on PostgreSQL:", "LEAT_URL=postgres://postgres@localhost:5432/postgres")
	}
	hint("duplicates known to Redis:", "LEAT_REDIS_URL=redis://localhost:6379/0")
	return text.String()
}

// rejected reports a line that is not published.
func (v *screen) rejected(number int, reason error) {
	v.printf(v.stderr, "line %d rejected: %s\n", number, clean(reason.Error()))
}

// say prints a message of the program.
func (v *screen) say(text string) { v.printf(v.stderr, "quickstart: %s\n", text) }

// logger writes the bus's warnings.
func (v *screen) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(writerFunc(func(text []byte) {
		v.printf(v.stderr, "%s", text)
	}), &slog.HandlerOptions{
		Level: slog.LevelWarn,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

type writerFunc func([]byte)

func (f writerFunc) Write(text []byte) (int, error) {
	f(text)
	return len(text), nil
}

// table prints rows under a heading.
func (v *screen) table(heading []string, fill func(row func(...string))) {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintf(w, "  %s\n", strings.Join(cells, "\t")) }
	row(heading...)
	fill(row)
	_ = w.Flush() // writing to a strings.Builder never fails
	first, rest, _ := strings.Cut(text.String(), "\n")
	v.printf(v.story, "%s\n%s\n", v.paint(dim, first), rest)
}

// printf writes whole lines above the progress. It ignores errors, since the reader may have ended.
func (v *screen) printf(w io.Writer, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.progress != "" {
		fmt.Fprint(v.terminal, eraseLine)
	}
	fmt.Fprintf(w, format, args...)
	if v.progress != "" {
		fmt.Fprint(v.terminal, v.progress)
	}
}

// setProgress overwrites the progress; "" removes it.
func (v *screen) setProgress(text string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.progress = text
	fmt.Fprint(v.terminal, eraseLine, text)
}

const (
	eraseLine = "\r\x1b[K"

	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	blue   = "34"
)

func (v *screen) paint(colour, text string) string {
	if !v.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// thousands formats 1234567 as 1,234,567.
func thousands(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// shown returns a URL without its user, password and options. It can be parsed, since it was opened.
func shown(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}
