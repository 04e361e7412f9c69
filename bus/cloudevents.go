package bus

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// ParseCloudEvent parses a CloudEvents 1.0 event in structured JSON format (https://github.com/cloudevents/spec, JSON format
// 1.0.2). Its data becomes the payload, byte for byte, and its attributes the headers. A header records which extensions are
// booleans or integers, for [FormatCloudEvent]. The error names the attribute that breaks the specification.
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
	if err := onlyOnce(data, len(attributes)); err != nil {
		return nil, err
	}

	h := make(message.Metadata, len(attributes))
	var typed []string // those that are no strings
	for name, raw := range attributes {
		if name == "data" || name == "data_base64" {
			continue
		}
		isString, err := setAttribute(h, name, raw)
		if err != nil {
			return nil, err
		}
		if !isString {
			typed = append(typed, name)
		}
	}
	if len(typed) > 0 {
		slices.Sort(typed)
		h[headerTypes] = strings.Join(typed, " ")
	}
	if err := checkAttributes(h); err != nil {
		return nil, err
	}
	delete(h, driver.HeaderSpecVersion) // 1.0, and checked

	payload, err := eventData(attributes, h[driver.HeaderContentType])
	if err != nil {
		return nil, err
	}
	return &message.Message{UUID: h[driver.HeaderID], Metadata: h, Payload: payload}, nil
}

// onlyOnce returns an error if a JSON object has a member twice: encoding/json takes the last, other parsers the first.
func onlyOnce(data []byte, distinct int) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	_, _ = decoder.Token() // the object was read before, so nothing fails here
	seen := make(map[string]bool, distinct)
	for decoder.More() {
		name, _ := decoder.Token()
		text, _ := name.(string)
		if seen[text] {
			return fmt.Errorf("attribute %s is there twice", driver.OneLine(text, 64))
		}
		seen[text] = true
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return fmt.Errorf("not a JSON object: %w", err)
		}
	}
	return nil
}

// setAttribute writes one attribute into the headers and reports whether it is a string. Null means absent.
func setAttribute(h message.Metadata, name string, raw json.RawMessage) (isString bool, err error) {
	if !attributeName(name) {
		return false, fmt.Errorf("attribute name %q: use lower-case letters and digits", driver.OneLine(name, 64))
	}
	var value any
	if err := json.Unmarshal(raw, &value); err != nil {
		return false, fmt.Errorf("attribute %s: %w", name, err)
	}
	text := string(raw)
	switch v := value.(type) {
	case nil:
		return true, nil
	case string:
		if halfSurrogate(raw) {
			return false, fmt.Errorf("attribute %s: %w", name, errHalfSurrogate)
		}
		text, isString = v, true
	case bool:
	case float64:
		if strings.ContainsAny(text, ".eE") || v < -1<<31 || v >= 1<<31 {
			return false, fmt.Errorf("attribute %s: %s is not a 32-bit integer", name, driver.OneLine(text, 64))
		}
	default:
		return false, fmt.Errorf("attribute %s: %s is neither string, boolean nor integer", name, driver.OneLine(text, 64))
	}
	switch name {
	case "id", "source", "specversion", "type", "subject", "time", "datacontenttype", "dataschema":
		if !isString {
			return false, fmt.Errorf("attribute %s: %s is not a string", name, driver.OneLine(text, 64))
		}
	}
	if plainAttribute(name) {
		h[name] = text
	} else {
		h[attributePrefix+name] = text
	}
	return isString, nil
}

// eventData returns the payload: data as JSON, the text of data if the content type is not JSON, or data_base64 decoded.
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
		if strings.ContainsAny(text, "\r\n") {
			return nil, errors.New("data_base64: it has a line break")
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
			if halfSurrogate(data) {
				return nil, fmt.Errorf("data: %w", errHalfSurrogate)
			}
			return []byte(text), nil
		}
		return bytes.Clone(data), nil
	}
}

// headerTypes is the header that lists the extensions of a CloudEvent that are booleans or integers: all headers are text.
const headerTypes = driver.HeaderTypes

// FormatCloudEvent formats a message as a CloudEvents 1.0 event in structured JSON format, on one line. It leaves out headers
// that are not CloudEvents attributes, and empty ones that the specification does not require. It returns an error for an
// attribute that breaks the specification. It is the inverse of [ParseCloudEvent], except for white space in a JSON payload.
func FormatCloudEvent(msg *message.Message) ([]byte, error) {
	event, err := eventAttributes(msg)
	if err != nil {
		return nil, fmt.Errorf("bus: format CloudEvent: message %s %w", driver.MessageID(msg), err)
	}
	contentType := msg.Metadata[driver.HeaderContentType]
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
		return nil, fmt.Errorf("bus: format CloudEvent: message %s: %w", driver.MessageID(msg), err)
	}
	return bytes.TrimSuffix(text.Bytes(), []byte("\n")), nil
}

// eventAttributes returns the attributes of a message as JSON values.
func eventAttributes(msg *message.Message) (map[string]any, error) {
	h := msg.Metadata
	for _, required := range []string{driver.HeaderSource, driver.HeaderType} {
		if h[required] == "" {
			return nil, fmt.Errorf("has no %s", required)
		}
	}
	typed := strings.Fields(h[headerTypes])
	event := map[string]any{"specversion": "1.0", "id": driver.MessageID(msg)}
	if err := checkAttribute("id", driver.MessageID(msg)); err != nil {
		return nil, fmt.Errorf("is no CloudEvent: %w", err)
	}
	for header, value := range h {
		name, ok := attributeOf(header)
		if !ok || name == "id" || name == "specversion" || value == "" && optionalAttribute(name) {
			continue
		}
		if err := checkAttribute(name, value); err != nil {
			return nil, fmt.Errorf("is no CloudEvent: %w", err)
		}
		event[name] = value
		if slices.Contains(typed, name) && noString(value) {
			event[name] = json.RawMessage(value)
		}
	}
	return event, nil
}

// noString reports whether text is a boolean or a 32-bit integer in JSON.
func noString(text string) bool {
	if text == "true" || text == "false" {
		return true
	}
	_, err := strconv.ParseInt(text, 10, 32)
	return err == nil && json.Valid([]byte(text))
}
