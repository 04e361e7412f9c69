package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/internal/testenv"
)

// asProgram makes the test binary run the program, for tests that need a process.
const asProgram = "QUICKSTART_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	testenv.Main(m)
}

// output may be written and read concurrently.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// result is the result of a run.
type result struct {
	status         int
	stdout, stderr string
}

// report parses the last line of stdout.
func (r result) report(t *testing.T) report {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	decoder := json.NewDecoder(strings.NewReader(lines[len(lines)-1]))
	decoder.DisallowUnknownFields()
	var got report
	if err := decoder.Decode(&got); err != nil {
		t.Fatalf("the last line of stdout is no report: %v\nstdout: %s\nstderr: %s", err, r.stdout, r.stderr)
	}
	return got
}

type environment map[string]string

func (e environment) get(name string) string { return e[name] }

func start(t *testing.T, stdin io.Reader, env environment, args ...string) result {
	t.Helper()
	var stdout, stderr output
	status := run(t.Context(), args, stdin, &stdout, &stderr, env.get)
	return result{status, stdout.String(), stderr.String()}
}

func requireReport(t *testing.T, r result, want report) {
	t.Helper()
	if got := r.report(t); !reflect.DeepEqual(got, want) {
		t.Errorf("report\n got %+v\nwant %+v", got, want)
	}
	if r.status != exitFine {
		t.Errorf("exit status %d, stderr: %s", r.status, r.stderr)
	}
}

func TestReport_countsTheDefaultEvents(t *testing.T) {
	t.Parallel()
	requireReport(t, start(t, nil, nil, "-json"), modelOf(defaultEvents))
}

func TestEvents_haveEveryCase(t *testing.T) {
	t.Parallel()
	for _, part := range []string{
		`"order.placed.v1"`, `"order.placed.v2"`, `"order.paid.v1"`, `"order.paid.v9"`, `"invoice.sent.v1"`,
		`"card"`, `"transfer"`, `"flaky"`, `"bounced"`, `"panic"`,
	} {
		if !bytes.Contains(defaultEvents, []byte(part)) {
			t.Errorf("no line has %s", part)
		}
	}
	r := modelOf(defaultEvents)
	if r.Read < 900 || r.Read > 1100 || r.Rejected == 0 || r.Unrouted == 0 || r.Groups["audit"].Duplicates == 0 {
		t.Errorf("it should be about 1,000 lines with something of everything: %+v", r)
	}
}

func TestReport_countsForeignEvents(t *testing.T) {
	t.Parallel()
	text := strangers(7, 10_000)
	path := filepath.Join(t.TempDir(), "events.ndjson")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	requireReport(t, start(t, nil, nil, "-json", "-input", path), modelOf(text))
}

// Without its setting, the circuit breaker would pause the group, because nearly all messages fail.
func TestRun_endsWithBadPaymentsOnly(t *testing.T) {
	t.Parallel()
	var text []byte
	for i := range 40 {
		text = fmt.Appendf(text, `{"specversion":"1.0","id":"bad-%d","source":"/bank","type":"order.paid.v1","subject":"B-%d","time":"2026-03-02T08:44:35Z",`+
			`"data":{"order_id":"B-%d","cents":100,"method":"bounced","paid_at":"2026-03-02T08:44:31Z"}}`+"\n", i, i, i)
	}
	want := modelOf(text)
	want.Groups["reserve-stock"] = groupReport{}
	requireReport(t, start(t, bytes.NewReader(text), nil, "-json", "-input", "-"), want)
}

func TestInput_standardInput(t *testing.T) {
	t.Parallel()
	text := strangers(8, 500)
	requireReport(t, start(t, slowly{bytes.NewReader(text)}, nil, "-json", "-input", "-"), modelOf(text))
}

// slowly is a producer that writes in small parts.
type slowly struct{ from io.Reader }

func (r slowly) Read(p []byte) (int, error) { return r.from.Read(p[:min(len(p), 100)]) }

func TestDedup_redisKeysArePerRun(t *testing.T) {
	t.Parallel()
	env := environment{"LEAT_REDIS_URL": testenv.Redis(t)}
	for range 2 {
		requireReport(t, start(t, nil, env, "-json"), modelOf(defaultEvents))
	}
}

func TestReport_hasExactlyTheseFields(t *testing.T) {
	t.Parallel()
	r := start(t, strings.NewReader(""), nil, "-json", "-input", "-")
	const want = `{"read":0,"rejected":0,"published":0,"unrouted":0,"groups":{` +
		`"audit":{"handled":0,"duplicates":0,"poisoned":0},` +
		`"book-payment":{"handled":0,"duplicates":0,"poisoned":0},` +
		`"reserve-stock":{"handled":0,"duplicates":0,"poisoned":0}},"lost":0}` + "\n"
	if r.stdout != want || r.status != exitFine {
		t.Errorf("status %d\n got %s\nwant %s", r.status, r.stdout, want)
	}
}

func TestScreen_plainLinesIntoAPipe(t *testing.T) {
	t.Parallel()
	r := start(t, nil, nil)
	for _, part := range []string{
		"reserve-stock", "v2, v1 is lifted", "ordered by key", "20ms 100ms 250ms",
		"handled", "duplicate", "redelivered", "poisoned", "the payment bounced", "panic: no account",
		"✔ every message accounted for", "LEAT_REDIS_URL=",
	} {
		if !strings.Contains(r.stdout, part) {
			t.Errorf("stdout does not tell %q:\n%s", part, r.stdout)
		}
	}
	if strings.ContainsAny(r.stdout+r.stderr, "\x1b\r") {
		t.Errorf("there are control characters in it:\n%q", r.stdout)
	}
}

func TestScreen_progressOnATerminal(t *testing.T) {
	t.Parallel()
	for name, coloured := range map[string]bool{"": true, "1": false} {
		var stdout, stderr output
		env := environment{"NO_COLOR": name}
		s, err := readSettings(t.Context(), nil, nil, &stderr, env.get)
		if err != nil {
			t.Fatal(err)
		}
		view := newScreen(false, &stdout, &stderr, env.get)
		view.terminal, view.colour = &stdout, env["NO_COLOR"] == ""
		if status := play(t.Context(), s, view); status != exitFine {
			t.Errorf("exit status %d", status)
		}
		text := stdout.String()
		if !strings.Contains(text, "lines read") || !strings.Contains(text, eraseLine+"\n") {
			t.Errorf("no progress, or it stays: %q", text)
		}
		if got := strings.Contains(text, "\x1b[3"); got != coloured {
			t.Errorf("NO_COLOR=%q: coloured is %t", name, got)
		}
	}
}

func TestInput_reportsRejectedLines(t *testing.T) {
	t.Parallel()
	text := "not JSON\n" +
		"\n   \t\r\n" + // blank lines are skipped, but they have numbers
		`{"specversion":"1.0","id":"1","source":"/s"}` + "\n" +
		`{"specversion":"1.0","id":"1","source":"/s","type":"order.*"}` + "\r\n" +
		`{"specversion":"1.0","id":"\u001b[2J","source":"/s","type":"\u001b[2J"}` + "\n" +
		`{"specversion":"1.0","id":"1","source":"/s","type":"order.cancelled.v1"}` // no newline
	r := start(t, strings.NewReader(text), nil, "-json", "-input", "-")
	requireReport(t, r, report{Read: 5, Rejected: 4, Published: 1, Groups: map[string]groupReport{
		"audit": {Handled: 1}, "book-payment": {}, "reserve-stock": {},
	}})
	for _, part := range []string{
		"line 1 rejected: not a JSON object", "line 4 rejected: attribute type is missing", "line 5 rejected: attribute type: topic", "line 6 rejected",
	} {
		if !strings.Contains(r.stderr, part) {
			t.Errorf("stderr does not say %q:\n%s", part, r.stderr)
		}
	}
	if strings.Contains(r.stderr, "\x1b") {
		t.Errorf("an escape sequence of the input is on the terminal: %q", r.stderr)
	}
}

func TestInput_skipsAByteOrderMark(t *testing.T) {
	t.Parallel()
	const event = `{"specversion":"1.0","id":"1","source":"/s","type":"order.noted.v1"}`
	r := start(t, strings.NewReader("\ufeff"+event+"\r\n\ufeff"+event), nil, "-json", "-input", "-")
	requireReport(t, r, report{Read: 2, Rejected: 1, Published: 1, Groups: map[string]groupReport{
		"audit": {Handled: 1}, "book-payment": {}, "reserve-stock": {},
	}})
}

func TestInput_acceptsLongLines(t *testing.T) {
	t.Parallel()
	long := func(id string, size int) string {
		return fmt.Sprintf(`{"specversion":"1.0","id":%q,"source":"/s","type":"order.noted.v1","data":{"note":"%s"}}`, id, strings.Repeat("x", size))
	}
	text := strings.Join([]string{long("a", 10), long("b", 10<<20), long("c", maxLine), long("d", 10)}, "\n")
	r := start(t, strings.NewReader(text), nil, "-json", "-input", "-")
	requireReport(t, r, report{Read: 4, Rejected: 1, Published: 3, Groups: map[string]groupReport{
		"audit": {Handled: 3}, "book-payment": {}, "reserve-stock": {},
	}})
	if !strings.Contains(r.stderr, "line 3 rejected: the line is longer than 64 MiB") {
		t.Errorf("stderr: %s", r.stderr)
	}
}

func TestRun_startErrorsHaveReasons(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing.ndjson")
	for name, c := range map[string]struct {
		args []string
		env  environment
		want string
	}{
		"unknown flag":          {args: []string{"-inptu", "x"}, want: "-inptu"},
		"one argument too many": {args: []string{"events.ndjson"}, want: "-input"},
		"missing file":          {args: []string{"-input", missing}, want: "missing.ndjson"},
		"directory":             {args: []string{"-input", t.TempDir()}, want: "is a directory"},
		"misspelt scheme":       {env: environment{"LEAT_URL": "memry://"}, want: "LEAT_URL: transports: no transport for \"memry://\""},
		"misspelt option":       {env: environment{"LEAT_URL": "memory://?que=1"}, want: "queue"},
		"unreadable Redis URL":  {env: environment{"LEAT_REDIS_URL": "rdis://:secret@x"}, want: "LEAT_REDIS_URL: "},
		"Redis away":            {env: environment{"LEAT_REDIS_URL": "redis://:secret@127.0.0.1:1/0"}, want: "LEAT_REDIS_URL: "},
		"bad service name":      {env: environment{"LEAT_SERVICE": "a b"}, want: "service"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, nil, c.env, append(c.args, "-json")...)
			if r.status != exitNotStarted || !strings.Contains(r.stderr, c.want) || r.stdout != "" {
				t.Errorf("exit status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
			}
			if strings.Contains(r.stderr, "secret") {
				t.Errorf("the password is shown: %s", r.stderr)
			}
		})
	}
}

func TestRun_helpIsNoError(t *testing.T) {
	t.Parallel()
	if r := start(t, nil, nil, "-h"); r.status != exitFine || !strings.Contains(r.stderr, "-input FILE") {
		t.Errorf("exit status %d, stderr %q", r.status, r.stderr)
	}
}

func TestInterrupt_handlesPublishedMessages(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	defer writer.Close()
	go func() {
		_, _ = writer.Write(strangers(9, 3000)) // more than the reader holds; then it waits for the next
		interrupt()
	}()
	var stdout, stderr output
	status := run(ctx, []string{"-json", "-input", "-"}, reader, &stdout, &stderr, environment{}.get)
	r := result{status, stdout.String(), stderr.String()}
	got := r.report(t)
	if status != exitFine || got.Lost != 0 || got.Read != got.Rejected+got.Published || got.Published == 0 {
		t.Errorf("exit status %d, %+v", status, got)
	}
	if !strings.Contains(r.stderr, "no more is read") {
		t.Errorf("stderr: %s", r.stderr)
	}
}

// stuck is a run whose bounced payments get no outcome, because the poison queue is too small.
func stuck(t *testing.T, patience time.Duration) result {
	t.Helper()
	var stdout, stderr output
	env := environment{"LEAT_URL": "memory://?poison=1"}
	s, err := readSettings(t.Context(), []string{"-json"}, nil, &stderr, env.get)
	if err != nil {
		t.Fatal(err)
	}
	s.patience = patience
	status := play(t.Context(), s, newScreen(s.json, &stdout, &stderr, env.get))
	return result{status, stdout.String(), stderr.String()}
}

func TestReport_missingOutcomeFailsTheRun(t *testing.T) {
	t.Parallel()
	r := stuck(t, 30*time.Second) // in which a busy machine brings one message to its end, at least
	got, want := r.report(t), modelOf(defaultEvents)
	poisoned := want.Groups["book-payment"].Poisoned + want.Groups["reserve-stock"].Poisoned
	if r.status != exitLost || got.Lost != poisoned {
		t.Errorf("exit status %d, lost %d of the %d that can't be poisoned", r.status, got.Lost, poisoned)
	}
	if !strings.Contains(r.stderr, "the poison queue is full") {
		t.Errorf("stderr does not say why: %s", r.stderr)
	}
}

func TestInput_readErrorFailsTheRun(t *testing.T) {
	t.Parallel()
	text := strangers(10, 50)
	broken := io.MultiReader(bytes.NewReader(text), failing{})
	r := start(t, broken, nil, "-json", "-input", "-")
	if got := r.report(t); r.status != exitLost || !reflect.DeepEqual(got, modelOf(text)) || !strings.Contains(r.stderr, "read line 51: the disk is gone") {
		t.Errorf("exit status %d, %+v, stderr %s", r.status, got, r.stderr)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error)  { return 0, errors.New("the disk is gone") }
func (failing) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestScreen_brokenStdoutDoesNotEndTheRun(t *testing.T) {
	t.Parallel()
	var stderr output
	if status := run(t.Context(), nil, nil, failing{}, &stderr, environment{}.get); status != exitFine {
		t.Errorf("exit status %d, stderr %s", status, stderr.String())
	}
	if status := run(t.Context(), []string{"-json"}, nil, failing{}, &stderr, environment{}.get); status != exitLost {
		t.Errorf("exit status %d although nobody got the report", status)
	}
}

func TestReport_ignoresEarlierRuns(t *testing.T) {
	t.Parallel()
	var stdout, stderr output
	s, err := readSettings(t.Context(), nil, nil, &stderr, environment{}.get)
	if err != nil {
		t.Fatal(err)
	}
	view := newScreen(false, &stdout, &stderr, environment{}.get)
	b, err := newBus(t.Context(), s, view)
	if err != nil {
		t.Fatal(err)
	}
	unwanted := message.NewMessage("0", nil)
	unwanted.Metadata = message.Metadata{"ce_type": "invoice.sent.v1"}
	if err := b.PublishMessages(t.Context(), unwanted); err != nil { // which makes the groups
		t.Fatal(err)
	}
	leftover := message.NewMessage("1", []byte(`{}`))
	leftover.Metadata = message.Metadata{"ce_type": "order.paid.v1"}
	if err := b.Transport().Publish(t.Context(), "order.paid.v1", leftover); err != nil { // past this bus
		t.Fatal(err)
	}
	got, err := process(t.Context(), b, s, view)
	want := modelOf(defaultEvents)
	want.Published++
	want.Unrouted++
	want.leftovers = 2
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
	}
}

func TestAmount_isExact(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"0": 0, "0.1": 10, "19.99": 1999, "20": 2000, "1.005": 101, "0.005": 1, "0.0049": 0, "1e2": 10000, "1.5E1": 1500,
		"92233720368547758.07": 9223372036854775807, "4.35": 435, "-0.001": -1, "-3": -300, "1e-9": 0, "null": 0,
	} {
		var a Amount
		if err := json.Unmarshal([]byte(text), &a); err != nil || a.Cents != want {
			t.Errorf("%s is %d cents, %v; want %d", text, a.Cents, err, want)
		}
	}
	for _, text := range []string{`"19.99"`, "true", "[]", "{}", "1e999999999", "-1e65", "92233720368547758.08", strings.Repeat("9", 100)} {
		var a Amount
		if err := json.Unmarshal([]byte(text), &a); err == nil {
			t.Errorf("%s is taken for %d cents", text, a.Cents)
		}
	}
	if text, err := json.Marshal(Amount{Cents: 1999}); err != nil || string(text) != "19.99" {
		t.Errorf("%s, %v", text, err)
	}
}

// program starts the program as a process.
func program(t *testing.T, env []string, args ...string) (command *exec.Cmd, stdin io.WriteCloser, stdout, stderr *output) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no interrupt that one process can send to another")
	}
	stdout, stderr = new(output), new(output)
	command = exec.CommandContext(t.Context(), os.Args[0], args...) // this test itself
	command.Env = append(append(os.Environ(), asProgram+"=1", "LEAT_URL=", "LEAT_REDIS_URL="), env...)
	command.Stdout, command.Stderr = stdout, stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	return command, stdin, stdout, stderr
}

// until waits for what a process prints.
func until(t *testing.T, o *output, part string) {
	t.Helper()
	tick, timeout := time.NewTicker(5*time.Millisecond), time.After(5*time.Minute)
	defer tick.Stop()
	for !strings.Contains(o.String(), part) {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%q does not come: %s", part, o.String())
		}
	}
}

func TestInterrupt_endsWhileTheInputBlocks(t *testing.T) {
	t.Parallel()
	command, stdin, stdout, stderr := program(t, nil, "-input", "-")
	defer stdin.Close()
	_, _ = io.WriteString(stdin, `{"specversion":"1.0","id":"1","source":"/s","type":"order.cancelled.v1"}`+"\n")
	until(t, stdout, "handled      audit")
	_ = command.Process.Signal(os.Interrupt)
	if err := command.Wait(); err != nil || !strings.Contains(stdout.String(), "✔ every message accounted for") {
		t.Errorf("%v\n%s%s", err, stdout, stderr)
	}
}

func TestInterrupt_repeatedSignalCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals, stopped, quit := make(chan os.Signal, 2), 0, 0
		go obey(signals, func() { stopped++ }, func() { quit++ })
		signals <- os.Interrupt
		signals <- os.Interrupt
		synctest.Wait()
		if stopped != 1 || quit != 0 {
			t.Errorf("stopped %d times, quit %d times", stopped, quit)
		}
		time.Sleep(sameStroke)
		signals <- os.Interrupt
		synctest.Wait()
		if quit != 1 {
			t.Error("a second wish is not heard")
		}
	})
}

func TestInterrupt_secondEndsAtOnce(t *testing.T) {
	t.Parallel()
	command, stdin, stdout, stderr := program(t, []string{"LEAT_URL=memory://?poison=1"}, "-input", "-")
	defer stdin.Close()
	_, _ = io.WriteString(stdin, `{"specversion":"1.0","id":"1","source":"/s","type":"order.paid.v1","data":{}}`+"\n") // comes to no end
	until(t, stdout, "redelivered  book-payment")
	_ = command.Process.Signal(os.Interrupt)
	until(t, stderr, "no more is read")
	go func() { // until one of them comes so late that it is meant
		for command.Process.Signal(os.Interrupt) == nil {
			time.Sleep(10 * time.Millisecond)
		}
	}()
	var exit *exec.ExitError
	if err := command.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("%v\n%s%s", err, stdout, stderr)
	}
}
