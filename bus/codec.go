package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"
)

// Codec turns events into payloads and back. Its methods may be called concurrently and must not
// keep the slices or values they are given.
type Codec interface {
	// ContentType is the media type of what Marshal writes, such as "application/json".
	ContentType() string
	// Marshal encodes an event.
	Marshal(event any) ([]byte, error)
	// Unmarshal decodes a payload into the value that event points to. An error means that the
	// payload will never decode: it is permanent.
	Unmarshal(payload []byte, event any) error
}

// JSON is the default [Codec]: encoding/json, with the payloads refused that encoding/json would
// quietly change or take for a zero value.
type JSON struct {
	// Strict refuses payloads with fields that the event does not have.
	Strict bool
}

// ContentType is "application/json".
func (JSON) ContentType() string { return "application/json" }

// Marshal encodes with encoding/json.
func (JSON) Marshal(event any) ([]byte, error) { return json.Marshal(event) }

// Unmarshal decodes with encoding/json. It refuses an empty payload, null, invalid UTF-8
// (encoding/json would replace it) and, where the codec is Strict, unknown fields.
func (c JSON) Unmarshal(payload []byte, event any) error {
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
