package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// A Codec encodes events into payloads and decodes them. Its methods may be called concurrently, and must not keep the slices
// or values that they get.
type Codec interface {
	// ContentType returns the media type that Marshal writes, such as "application/json".
	ContentType() string
	// Marshal encodes an event.
	Marshal(event any) ([]byte, error)
	// Unmarshal decodes a payload into the value that event points to. An error is permanent: the message is poisoned.
	Unmarshal(payload []byte, event any) error
}

// JSON is the default [Codec]. It uses encoding/json, and returns errors for payloads that encoding/json would silently change
// or decode into a zero value.
type JSON struct {
	// Strict refuses payloads with fields that the event does not have.
	Strict bool
}

// ContentType returns "application/json".
func (JSON) ContentType() string { return "application/json" }

// Marshal encodes event with encoding/json. It returns an error if a string is not valid UTF-8, which encoding/json would
// replace.
func (JSON) Marshal(event any) ([]byte, error) {
	payload, err := json.Marshal(event)
	// encoding/json replaces invalid bytes by the escape \ufffd, but writes a valid U+FFFD without an escape.
	if err == nil && bytes.Contains(payload, []byte(`\ufffd`)) && invalidText(reflect.ValueOf(event)) {
		return nil, errors.New("it has a string that is not valid UTF-8; encode binary data as []byte")
	}
	return payload, err
}

// invalidText reports whether a value has a string that is not valid UTF-8 in a part that encoding/json encodes.
func invalidText(v reflect.Value) bool {
	s := textSearch{left: 1_000_000}
	return s.invalid(v)
}

// textSearch ends after a number of values: parts that encoding/json does not encode may point at themselves.
type textSearch struct{ left int }

func (s *textSearch) invalid(v reflect.Value) bool {
	if s.left--; s.left < 0 {
		return false
	}
	switch v.Kind() {
	case reflect.String:
		return !utf8.ValidString(v.String())
	case reflect.Pointer, reflect.Interface:
		return !v.IsNil() && s.invalid(v.Elem())
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return false
		}
		for i := range v.Len() {
			if s.invalid(v.Index(i)) {
				return true
			}
		}
	case reflect.Map:
		for key, value := range v.Seq2() {
			if s.invalid(key) || s.invalid(value) {
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); (f.IsExported() || f.Anonymous) && f.Tag.Get("json") != "-" && s.invalid(v.Field(i)) {
				return true
			}
		}
	default:
	}
	return false
}

// Unmarshal decodes payload with encoding/json. It returns an error if the payload is empty or null, if it has invalid UTF-8 or
// half a surrogate pair, which encoding/json would replace, and if the codec is Strict, for unknown fields. As in
// encoding/json, the last of several equal keys counts, keys match fields in any case, and a large number in an any loses
// precision.
func (c JSON) Unmarshal(payload []byte, event any) error {
	if err := c.decode(payload, event); err != nil {
		return err
	}
	if halfSurrogate(payload) {
		return errHalfSurrogate
	}
	return nil
}

func (c JSON) decode(payload []byte, event any) error {
	switch {
	case len(payload) == 0:
		return errors.New("payload is empty")
	case !utf8.Valid(payload):
		return errors.New("payload is not valid UTF-8")
	case bytes.Equal(bytes.TrimSpace(payload), []byte("null")):
		return errors.New("payload is null")
	}
	if !c.Strict {
		return json.Unmarshal(payload, event)
	}
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(event); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("payload has more than one JSON value")
	}
	return nil
}

var errHalfSurrogate = errors.New(`it has half a surrogate pair, like "\ud800"`)

// halfSurrogate reports whether valid JSON has the escape of a surrogate without its other half. It is fast for text without
// escapes.
func halfSurrogate(text []byte) bool {
	for {
		i := bytes.IndexByte(text, '\\')
		if i < 0 || i+1 >= len(text) {
			return false
		}
		r := escapedRune(text[i:])
		switch {
		case r < 0:
			text = text[i+2:]
		case utf16.IsSurrogate(r):
			if utf16.DecodeRune(r, escapedRune(text[i+6:])) == utf8.RuneError {
				return true
			}
			text = text[i+12:]
		default:
			text = text[i+6:]
		}
	}
}

// escapedRune returns the rune of an escape like \u00e4 at the beginning of text, -1 if there is none.
func escapedRune(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return -1
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(n)
}
