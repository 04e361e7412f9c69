package admin

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable escapes a text for one line: control characters (C0, DEL, C1), bidirectional controls, other
// invisible ones, and bytes that are not valid UTF-8.
func Printable(text string) string { return escape(text, unprintable) }

// PrintableLines does the same as [Printable], and keeps newlines and tabs.
func PrintableLines(text string) string { return escape(text, unsafeRune) }

// IsPrintable reports whether [PrintableLines] changes nothing.
func IsPrintable(text []byte) bool {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if unsafeRune(r) {
			return false
		}
		text = text[size:]
	}
	return true
}

func unsafeRune(r rune) bool { return r != '\n' && r != '\t' && unprintable(r) }

func unprintable(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }

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
