package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// textWriter is a terminal, or what stands for one. Names, errors and payloads come from messages, so from anybody: it
// escapes everything that steers a terminal or reorders a line. Everything that a command writes goes through it, but
// for JSON, payloads that were asked for as they are, and leat's own progress bar.
type textWriter struct{ w io.Writer }

func newTextWriter(w io.Writer) io.Writer {
	if t, ok := w.(textWriter); ok {
		return t
	}
	return textWriter{w}
}

func (t textWriter) Write(p []byte) (int, error) {
	if bytes.IndexFunc(p, unsafeRune) < 0 {
		return t.w.Write(p)
	}
	_, err := io.WriteString(t.w, escape(string(p), unsafeRune))
	return len(p), err
}

// raw returns the writer behind a textWriter.
func raw(w io.Writer) io.Writer {
	if t, ok := w.(textWriter); ok {
		return t.w
	}
	return w
}

// unsafeRune reports whether a rune is neither printable nor a newline nor a tab: control characters (C0, DEL, C1),
// bidirectional controls, other invisible ones, and bytes that are no UTF-8.
func unsafeRune(r rune) bool { return r != '\n' && r != '\t' && unprintable(r) }

func unprintable(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }

// printable escapes a text that belongs on one line.
func printable(text string) string { return escape(text, unprintable) }

// escape writes runes as a Go string literal does.
func escape(text string, must func(rune) bool) string {
	if strings.IndexFunc(text, must) < 0 {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		switch {
		case !must(r):
			b.WriteString(text[:size])
		case r == utf8.RuneError && size == 1, r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, text[0])
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		text = text[size:]
	}
	return b.String()
}
