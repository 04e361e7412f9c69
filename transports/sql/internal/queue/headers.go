package queue

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Headers are kept as a JSON object of strings, which operators can query with the database's JSON functions. In
// tables of a version before versionJSON they are lines of key=value; see headerlines.go. This release reads both
// forms everywhere. Lines end with a newline, and what is written as JSON does not: nobody who chooses the name of a
// header can have lines taken for JSON.
//
// JSON has no place for every byte. A string that is not valid UTF-8, has a NUL, which PostgreSQL refuses, or begins
// with base64: itself is kept as base64: and its bytes in base64.
const base64Mark = "base64:"

var (
	errNoObject  = errors.New("they are not a JSON object of strings")
	errTwice     = errors.New("is there twice")
	errTrailing  = errors.New("something follows the JSON object")
	errNoUTF8    = errors.New("a string is not valid UTF-8")
	errUnclosed  = errors.New("a string has no end")
	errNotString = errors.New("only strings are allowed in the JSON object")
)

// encodeHeaders writes headers as JSON if the tables' version has it, and as lines otherwise.
func encodeHeaders(headers message.Metadata, asJSON bool) []byte {
	if asJSON {
		return encodeJSON(headers)
	}
	return encodeLines(headers)
}

// decodeHeaders reads both forms. Without an error it returns no nil map: middleware writes into what it gets.
func decodeHeaders(b []byte) (headers message.Metadata, err error) {
	if len(b) == 0 || b[len(b)-1] == '\n' {
		headers, err = decodeLines(b)
	} else {
		headers, err = decodeJSON(string(b)) // all keys and values share it
	}
	if err != nil {
		return nil, fmt.Errorf("headers %.60q can't be read: %w", b, err)
	}
	return headers, nil
}

func encodeJSON(headers message.Metadata) []byte {
	size := len("{}")
	for k, v := range headers {
		size += len(k) + len(v) + len(`"":"",`)
	}
	b := append(make([]byte, 0, size+8), '{')
	for k, v := range headers {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(appendJSON(b, k), ':')
		b = appendJSON(b, v)
	}
	return append(b, '}')
}

// plain reports whether a string stands in JSON as it is. Most do.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func appendJSON(b []byte, s string) []byte {
	b = append(b, '"')
	if marked := strings.HasPrefix(s, base64Mark); !marked && plain(s) {
		return append(append(b, s...), '"')
	} else if marked || strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
		b = append(b, base64Mark...)
		return append(base64.StdEncoding.AppendEncode(b, []byte(s)), '"')
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// decodeJSON reads an object of strings. Anybody may have written it. It accepts nothing else, and no name twice:
// other readers would not agree on which value counts.
func decodeJSON(text string) (message.Metadata, error) {
	const few = 32 // most messages have fewer headers
	r := jsonReader{text}
	headers := make(message.Metadata, min(1+strings.Count(text, ","), few))
	if !r.next('{') {
		return nil, errNoObject
	}
	for more := !r.next('}'); more; {
		key, err := r.string()
		if err != nil {
			return nil, err
		}
		if !r.next(':') {
			return nil, errNoObject
		}
		before := len(headers)
		if headers[key], err = r.string(); err != nil {
			return nil, fmt.Errorf("%.60q: %w", key, err)
		}
		if len(headers) == before {
			return nil, fmt.Errorf("%.60q %w", key, errTwice)
		}
		if more = r.next(','); !more && !r.next('}') {
			return nil, errNoObject
		}
	}
	if r.skip(); r.rest != "" {
		return nil, errTrailing
	}
	return headers, nil
}

// jsonReader reads JSON from the start of rest.
type jsonReader struct{ rest string }

func (r *jsonReader) skip() {
	for r.rest != "" && (r.rest[0] == ' ' || r.rest[0] == '\t' || r.rest[0] == '\r' || r.rest[0] == '\n') {
		r.rest = r.rest[1:]
	}
}

// next reads one character, and reports whether it was there.
func (r *jsonReader) next(c byte) bool {
	if r.skip(); r.rest == "" || r.rest[0] != c {
		return false
	}
	r.rest = r.rest[1:]
	return true
}

func (r *jsonReader) string() (s string, err error) {
	if !r.next('"') {
		return "", errNotString
	}
	end := strings.IndexByte(r.rest, '"')
	for from := 0; end >= 0 && escaped(r.rest[from:end]); {
		from = end + 1
		if more := strings.IndexByte(r.rest[from:], '"'); more >= 0 {
			end = from + more
		} else {
			end = -1
		}
	}
	if end < 0 {
		return "", errUnclosed
	}
	s, r.rest = r.rest[:end], r.rest[end+1:]
	if !plain(s) {
		if s, err = unquote(s); err != nil {
			return "", err
		}
	}
	if coded, ok := strings.CutPrefix(s, base64Mark); ok {
		decoded, err := base64.StdEncoding.DecodeString(coded)
		return string(decoded), err
	}
	return s, nil
}

// escaped reports whether the character behind text is escaped in JSON: an odd number of backslashes stands before it.
func escaped(text string) bool {
	return (len(text)-len(strings.TrimRight(text, `\`)))%2 == 1
}

// unquote reads what stands between the quotation marks of a JSON string.
func unquote(s string) (text string, err error) {
	if !utf8.ValidString(s) {
		return "", errNoUTF8
	}
	err = json.Unmarshal([]byte(`"`+s+`"`), &text)
	return text, err
}
