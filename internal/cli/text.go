package cli

import (
	"io"

	"github.com/leatbus/leat/internal/admin"
)

// A textWriter escapes characters that control a terminal or reorder a line. Names, errors and payloads come from messages,
// so they are not trusted. Commands write everything through it except JSON, payloads that were requested unchanged, and the
// progress bar.
type textWriter struct{ w io.Writer }

func newTextWriter(w io.Writer) io.Writer {
	if t, ok := w.(textWriter); ok {
		return t
	}
	return textWriter{w}
}

func (t textWriter) Write(p []byte) (int, error) {
	if admin.IsPrintable(p) {
		return t.w.Write(p)
	}
	_, err := io.WriteString(t.w, admin.PrintableLines(string(p)))
	return len(p), err
}

// raw returns the writer behind a textWriter.
func raw(w io.Writer) io.Writer {
	if t, ok := w.(textWriter); ok {
		return t.w
	}
	return w
}

// printable escapes a text for one line.
func printable(text string) string { return admin.Printable(text) }
