package queue

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Before versionJSON, headers are written as lines of key=value. A backslash escapes =, newline and itself.

func encodeLines(headers message.Metadata) []byte {
	size := 0
	for k, v := range headers {
		size += len(k) + len(v) + 2
	}
	b := make([]byte, 0, size+8)
	for k, v := range headers {
		b = appendEscaped(b, k)
		b = append(b, '=')
		b = appendEscaped(b, v)
		b = append(b, '\n')
	}
	return b
}

func appendEscaped(b []byte, s string) []byte {
	if !strings.ContainsAny(s, "\\=\n") {
		return append(b, s...)
	}
	for i := range len(s) {
		switch c := s[i]; c {
		case '\\', '=':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, c)
		}
	}
	return b
}

func decodeLines(b []byte) (message.Metadata, error) {
	headers := make(message.Metadata, bytes.Count(b, []byte{'\n'}))
	text := string(b) // one allocation, which all keys and values share
	for text != "" {
		line, rest, whole := strings.Cut(text, "\n")
		eq := unescapedEquals(line)
		if !whole || eq < 0 {
			return nil, fmt.Errorf("header line %.60q has no key=value", line)
		}
		headers[unescape(line[:eq])] = unescape(line[eq+1:])
		text = rest
	}
	return headers, nil
}

// unescapedEquals returns the index of the = that ends the key of a line, -1 if there is none.
func unescapedEquals(line string) int {
	for i := 0; i < len(line); i++ {
		switch line[i] {
		case '\\':
			i++
		case '=':
			return i
		}
	}
	return -1
}

func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' && i+1 < len(s) {
			i++
			if c = s[i]; c == 'n' {
				c = '\n'
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}
