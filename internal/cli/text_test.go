package cli

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// hostile controls a terminal in every way: C0, DEL, C1 as a rune and as a byte, bidirectional
// controls, line separators, and lines that look like leat's own.
const hostile = "a\x1b]0;PWNED\a\x1b[31m\r\b\x7f\u009b31m\u009d\x9b\u202e\u2066\u200f\u2028\x00\xffz\nok     forged"

// requirePrintable fails the test if the output has other characters than printable ones, newlines and tabs.
func requirePrintable(t *testing.T, output string) {
	t.Helper()
	require.True(t, utf8.ValidString(output), "%q", output)
	for _, r := range output {
		require.True(t, r == '\n' || r == '\t' || unicode.IsPrint(r), "%q in %q", r, output)
	}
}

func TestTextWriter_escapesWhatSteersATerminal(t *testing.T) {
	var out bytes.Buffer
	w := newTextWriter(newTextWriter(&out))
	n, err := fmt.Fprint(w, hostile)
	require.NoError(t, err)
	require.Equal(t, len(hostile), n)
	requirePrintable(t, out.String())
	require.Equal(t, `a\x1b]0;PWNED\x07\x1b[31m\x0d\x08\x7f\u009b31m\u009d\x9b\u202e\u2066\u200f\u2028\x00\xffz`+"\nok     forged", out.String())
	require.NotContains(t, printable(hostile), "\n", "a value stays on its line")
	require.Equal(t, "Grüße, 世界 👋", printable("Grüße, 世界 👋"))
}

func FuzzTextWriter(f *testing.F) {
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, text string) {
		var out bytes.Buffer
		_, err := fmt.Fprint(newTextWriter(&out), text)
		require.NoError(t, err)
		requirePrintable(t, out.String())
	})
}

// hostileTransport returns a memory transport whose names and messages have control characters.
func hostileTransport(t *testing.T) *memory.Transport {
	t.Helper()
	transport := memory.New(memory.Config{})
	t.Cleanup(func() { _ = transport.Close(context.Background()) })
	ctx := t.Context()
	_, err := transport.Subscribe(ctx, driver.Subscription{Group: "shop.mail", Topics: []string{"order.>"}, Known: []string{"order.paid.v1"}, Concurrency: 1})
	require.NoError(t, err)
	msg := message.NewMessage(hostile, []byte(`{"a":"`+"\u009b31m\u202e\x7f"+`"}`))
	fault := driver.Fault{Text: hostile, Class: hostile, Chain: hostile, Stack: hostile, TraceID: hostile, Group: "shop.mail", Handler: hostile, Topic: "order.paid.v1", Host: hostile, Build: hostile, At: time.Now()}
	msg.Metadata = message.Metadata{driver.HeaderType: "order." + hostile, driver.HeaderID: hostile, driver.HeaderPartitionKey: hostile, hostile: hostile}
	fault.Record(msg.Metadata)
	require.NoError(t, transport.PoisonQueue("shop.mail").Put(ctx, driver.PoisonedMessage{Message: msg, Fault: fault}))
	return transport
}

func TestCommands_writeOnlyPrintableText(t *testing.T) {
	var grammar struct{ Commands }
	for _, args := range [][]string{
		{"groups"},
		{"groups", hostile},
		{"topics"},
		{"poison", "ls"},
		{"poison", "stats"},
		{"poison", "show", "1"},
		{"poison", "show", hostile},
		{"poison", "ls", "--type", "order.a" + hostile},
		{"poison", "ls", "--class", hostile},
		{"poison", "replay", "--count"},
		{"doctor"},
		{hostile},
		{"publish", "--topic", hostile, hostile},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			transport := hostileTransport(t)
			var stdout, stderr bytes.Buffer
			e := &Env{
				Program: "leat", Where: "memory://" + hostile, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
				Open: func(context.Context) (driver.Transport, error) { return transport, nil },
			}
			Run(t.Context(), &grammar, e, "test", args)
			require.NotEmpty(t, stdout.String()+stderr.String())
			requirePrintable(t, stdout.String())
			requirePrintable(t, stderr.String())
		})
	}
}

func TestTail_writesOnlyPrintableText(t *testing.T) {
	var stdout bytes.Buffer
	e := &Env{Stdout: newTextWriter(&stdout)}
	msg := message.NewMessage(hostile, []byte(hostile))
	require.NoError(t, new(tail).write(e, "order."+hostile, msg))
	requirePrintable(t, stdout.String())
	require.Equal(t, 1, strings.Count(stdout.String(), "\n"), "a message is one line")
}
