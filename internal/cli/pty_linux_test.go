package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/leatbus/leat/bus/driver"
)

// pty is a pseudo terminal. What is written to its terminal is what the terminal emulator gets.
type pty struct {
	terminal *os.File
	emulator *os.File
	done     chan struct{}

	mu     sync.Mutex
	output bytes.Buffer
}

func newPTY(t *testing.T) *pty {
	t.Helper()
	emulator, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("this system has no pseudo terminals: ", err)
	}
	require.NoError(t, unix.IoctlSetPointerInt(int(emulator.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(emulator.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 50, Col: 200}))
	require.True(t, term.IsTerminal(int(terminal.Fd())))
	p := &pty{terminal: terminal, emulator: emulator, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		buf := make([]byte, 4096)
		for {
			n, err := emulator.Read(buf)
			p.mu.Lock()
			p.output.Write(buf[:n])
			p.mu.Unlock()
			if err != nil { // EIO when the terminal is closed
				return
			}
		}
	}()
	return p
}

func (p *pty) written() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// close returns all that was written.
func (p *pty) close(t *testing.T) string {
	t.Helper()
	require.NoError(t, p.terminal.Close())
	<-p.done
	require.NoError(t, p.emulator.Close())
	return p.written()
}

// ownColors are the texts that leat colours or prints in bold. hostile has the sequence for red, too, but not before these words.
var ownColors = regexp.MustCompile(`\x1b\[32mok\x1b\[0m|\x1b\[31mWRONG\x1b\[0m|\x1b\[1m[A-Z]+( [A-Z]+)* *\x1b\[0m`)

// requireTerminalText fails the test for more than printable characters, tabs, the terminal's line ends, and leat's colours.
func requireTerminalText(t *testing.T, output string) {
	t.Helper()
	require.NotEmpty(t, output)
	require.True(t, utf8.ValidString(output), "%q", output)
	text := strings.ReplaceAll(ownColors.ReplaceAllString(output, ""), "\r\n", "\n")
	for _, r := range text {
		require.True(t, r == '\n' || r == '\t' || unicode.IsPrint(r), "%q in %q", r, output)
	}
}

// TestPTY_getsOnlyPrintableText runs commands as an operator does, on a terminal, with names and messages that want to steer it.
func TestPTY_getsOnlyPrintableText(t *testing.T) {
	var grammar struct{ Commands }
	for _, args := range [][]string{
		{"groups"},
		{"topics"},
		{"poison", "ls"},
		{"poison", "stats"},
		{"poison", "show", "1"},
		{"doctor"},
		{"groups", hostile},
		{"poison", "show", hostile},
		{hostile},
		{"tail", "order.>"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			transport, p := hostileTransport(t), newPTY(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			e := &Env{
				Program: "leat", Where: "memory://" + hostile, Stdin: strings.NewReader(""), Stdout: p.terminal, Stderr: p.terminal,
				Open: func(context.Context) (driver.Transport, error) { return transport, nil },
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				Run(ctx, &grammar, e, "test", args)
			}()
			if args[0] == "tail" {
				require.Eventually(t, func() bool { // it shows what is published after it has begun
					msg := message.NewMessage("1", []byte(hostile))
					msg.Metadata = message.Metadata{driver.HeaderType: hostile, driver.HeaderID: hostile, driver.HeaderPartitionKey: hostile, hostile: hostile}
					return transport.Publish(ctx, "order.paid.v1", msg) == nil && strings.Contains(p.written(), "PWNED")
				}, time.Minute, time.Millisecond)
				cancel()
			}
			<-ended
			requireTerminalText(t, p.close(t))
		})
	}
}
