package bus

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// ParseCloudEvent reads a CloudEvents 1.0 event in structured JSON format, for ingest and bridges:
// its data becomes the payload, byte for byte, and its attributes the headers. The error says which
// attribute breaks the specification (https://github.com/cloudevents/spec, JSON format 1.0.2).
func ParseCloudEvent(data []byte) (*message.Message, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	var attributes map[string]json.RawMessage
	if err := json.Unmarshal(data, &attributes); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if attributes == nil {
		return nil, errors.New("not a JSON object: null")
	}

	h := make(message.Metadata, len(attributes))
	for name, raw := range attributes {
		if name == "data" || name == "data_base64" {
			continue
		}
		if err := setAttribute(h, name, raw); err != nil {
			return nil, err
		}
	}
	if err := checkAttributes(h); err != nil {
		return nil, err
	}
	delete(h, HeaderSpecVersion) // 1.0, and checked

	payload, err := eventData(attributes, h[HeaderContentType])
	if err != nil {
		return nil, err
	}
	return &message.Message{UUID: h[HeaderID], Metadata: h, Payload: payload}, nil
}

// setAttribute writes one attribute into the headers. Null means absent.
func setAttribute(h message.Metadata, name string, raw json.RawMessage) error {
	if !attributeName(name) {
		return fmt.Errorf("attribute name %q: use lower-case letters and digits", name)
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return fmt.Errorf("attribute %s: %w", name, err)
	}
	text := string(raw)
	switch v := value.(type) {
	case nil:
		return nil
	case string:
		if strings.ContainsFunc(v, unicode.IsControl) {
			return fmt.Errorf("attribute %s: it has a control character", name)
		}
		text = v
	case bool:
	case float64:
		if strings.ContainsAny(text, ".eE") || v < -1<<31 || v >= 1<<31 {
			return fmt.Errorf("attribute %s: %s is not a 32-bit integer", name, text)
		}
	default:
		return fmt.Errorf("attribute %s: %s is neither string, boolean nor integer", name, OneLine(text, 64))
	}
	switch name {
	case "id", "source", "specversion", "type", "subject", "time", "datacontenttype", "dataschema":
		if _, ok := value.(string); !ok {
			return fmt.Errorf("attribute %s: %s is not a string", name, text)
		}
	}
	if plainAttribute(name) {
		h[name] = text
	} else {
		h[attributePrefix+name] = text
	}
	return nil
}

func attributeName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// checkAttributes holds the context attributes against the specification.
func checkAttributes(h message.Metadata) error {
	for _, required := range []string{HeaderSpecVersion, HeaderID, HeaderSource, HeaderType} {
		if h[required] == "" {
			return fmt.Errorf("attribute %s is missing or empty", strings.TrimPrefix(required, attributePrefix))
		}
	}
	if v := h[HeaderSpecVersion]; v != "1.0" {
		return fmt.Errorf("specversion is %q; this reads 1.0", v)
	}
	if _, err := url.Parse(h[HeaderSource]); err != nil {
		return fmt.Errorf("source %q is not a URI reference", OneLine(h[HeaderSource], 64))
	}
	if t, ok := h[HeaderTime]; ok {
		if _, err := readTime(t); err != nil {
			return fmt.Errorf("time %q is not RFC 3339", OneLine(t, 64))
		}
	}
	for _, optional := range []string{HeaderSubject, HeaderContentType, HeaderDataSchema} {
		if s, ok := h[optional]; ok && s == "" {
			return fmt.Errorf("%s is empty", strings.TrimPrefix(optional, attributePrefix))
		}
	}
	return nil
}

// eventData is the payload: the JSON of data, the text of data where the content type is not JSON,
// or what data_base64 decodes to.
func eventData(attributes map[string]json.RawMessage, contentType string) ([]byte, error) {
	data, hasData := attributes["data"]
	encoded, hasBase64 := attributes["data_base64"]
	hasBase64 = hasBase64 && string(encoded) != "null" // null means absent, as with attributes
	switch {
	case hasData && hasBase64:
		return nil, errors.New("both data and data_base64 are present")
	case hasBase64:
		var text string
		if err := json.Unmarshal(encoded, &text); err != nil {
			return nil, errors.New("data_base64 is not a string")
		}
		payload, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("data_base64: %w", err)
		}
		return payload, nil
	case isJSON(contentType):
		return bytes.Clone(data), nil
	default:
		var text string
		if json.Unmarshal(data, &text) == nil {
			return []byte(text), nil
		}
		return bytes.Clone(data), nil
	}
}

// isJSON says whether data of the content type stands in a CloudEvent as JSON; no content type
// means JSON.
func isJSON(contentType string) bool {
	mediaType, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	mediaType = strings.TrimSpace(mediaType)
	return mediaType == "" || strings.HasSuffix(mediaType, "/json") || strings.HasSuffix(mediaType, "+json")
}

// FormatCloudEvent writes a message as a CloudEvents 1.0 event in structured JSON format, on one line.
// Headers that are no CloudEvents attributes are left out. It is the inverse of [ParseCloudEvent], but
// for the white space in a JSON payload.
func FormatCloudEvent(msg *message.Message) ([]byte, error) {
	event := map[string]any{"specversion": "1.0", "id": MessageID(msg)}
	for key, value := range msg.Metadata {
		switch name, attribute := strings.CutPrefix(key, attributePrefix); {
		case key == HeaderSpecVersion, name == "data": // written here, whatever the header says
		case attribute && attributeName(name), plainAttribute(name):
			event[name] = value
		}
	}
	for _, required := range []string{"source", "type"} {
		if event[required] == nil {
			return nil, fmt.Errorf("bus: format CloudEvent: message %s has no %s%s", MessageID(msg), attributePrefix, required)
		}
	}
	contentType := msg.Metadata[HeaderContentType]
	switch {
	case len(msg.Payload) == 0:
	case !utf8.Valid(msg.Payload), isJSON(contentType) && !json.Valid(msg.Payload):
		event["data_base64"] = msg.Payload
	case isJSON(contentType):
		event["data"] = json.RawMessage(msg.Payload)
	default:
		event["data"] = string(msg.Payload)
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // it would change the payload
	if err := encoder.Encode(event); err != nil {
		return nil, fmt.Errorf("bus: format CloudEvent: message %s: %w", MessageID(msg), err)
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), nil
}
