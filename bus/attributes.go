package bus

import (
	"errors"
	"fmt"
	"mime"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
)

// This file has the rules of CloudEvents 1.0 for attributes. [ParseCloudEvent], [FormatCloudEvent] and [WithHeader] share them.

func attributeName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// attributeOf returns the name of the CloudEvents attribute in a header. ok is false if the header is not an attribute.
func attributeOf(header string) (name string, ok bool) {
	if plainAttribute(header) {
		return header, true
	}
	name, ok = strings.CutPrefix(header, attributePrefix)
	return name, ok && attributeName(name) && name != "data"
}

// optionalAttribute reports whether the specification defines the attribute and does not require it.
func optionalAttribute(name string) bool {
	switch name {
	case "subject", "time", "datacontenttype", "dataschema":
		return true
	default:
		return false
	}
}

// checkAttributes returns an error if an attribute among the headers is missing or breaks the specification.
func checkAttributes(h message.Metadata) error {
	for _, required := range []string{driver.HeaderSpecVersion, driver.HeaderID, driver.HeaderSource, driver.HeaderType} {
		if h[required] == "" {
			return checkAttribute(strings.TrimPrefix(required, attributePrefix), "")
		}
	}
	for header, value := range h {
		if name, ok := attributeOf(header); ok {
			if err := checkAttribute(name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkAttribute returns an error if an attribute breaks the specification.
func checkAttribute(name, value string) error {
	if err := checkText(value); err != nil {
		return fmt.Errorf("attribute %s: %w", name, err)
	}
	switch {
	case value != "":
	case optionalAttribute(name):
		return fmt.Errorf("%s is empty", name)
	case name == "specversion" || name == "id" || name == "source" || name == "type":
		return fmt.Errorf("attribute %s is missing or empty", name)
	}
	switch name {
	case "specversion":
		if value != "1.0" {
			return fmt.Errorf("specversion is %q; this reads 1.0", driver.OneLine(value, 64))
		}
	case "source":
		if !uriReference(value, false) {
			return fmt.Errorf("source %q is not a URI reference (percent-encode what can't stand in one)", driver.OneLine(value, 64))
		}
	case "dataschema":
		if !uriReference(value, true) {
			return fmt.Errorf("dataschema %q is not an absolute URI", driver.OneLine(value, 64))
		}
	case "datacontenttype":
		if !validMediaType(value) {
			return fmt.Errorf("datacontenttype %q is not a media type", driver.OneLine(value, 64))
		}
	case "time":
		if _, err := driver.ReadTime(value); err != nil {
			return fmt.Errorf("time %q is not RFC 3339", driver.OneLine(value, 64))
		}
	}
	return nil
}

// checkText returns an error for text that a CloudEvents string can't have: control characters, noncharacters and invalid
// UTF-8.
func checkText(s string) error {
	plain := true
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			plain = false
			break
		}
	}
	switch {
	case plain:
		return nil
	case !utf8.ValidString(s):
		return errors.New("it is not valid UTF-8")
	}
	for _, r := range s {
		switch {
		case unicode.IsControl(r):
			return errors.New("it has a control character")
		case r&0xfffe == 0xfffe, r >= 0xfdd0 && r <= 0xfdef:
			return fmt.Errorf("it has %U, which is no character", r)
		}
	}
	return nil
}

// uriReference reports whether s is a URI reference as in RFC 3986, or if absolute is true, a URI.
func uriReference(s string, absolute bool) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '%':
			if i+2 >= len(s) || !hexDigit(s[i+1]) || !hexDigit(s[i+2]) {
				return false
			}
		case !strings.ContainsRune("-._~:/?#[]@!$&'()*+,;=", rune(c)):
			return false
		}
	}
	u, err := url.Parse(s)
	return err == nil && strings.Count(s, "#") <= 1 && (!absolute || u.Scheme != "")
}

func hexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// validMediaType reports whether s is a type and a subtype, with parameters or without.
func validMediaType(s string) bool {
	mediaType, _, err := mime.ParseMediaType(s)
	return err == nil && strings.Contains(mediaType, "/")
}

// bareMediaType returns a media type without its parameters, in lower case.
func bareMediaType(s string) string {
	mediaType, _, _ := strings.Cut(strings.ToLower(s), ";")
	return strings.TrimSpace(mediaType)
}

// isJSON reports whether the content type is a JSON type, whose data is embedded in a CloudEvent as JSON. No content type
// means JSON.
func isJSON(contentType string) bool {
	mediaType := bareMediaType(contentType)
	return mediaType == "" || strings.HasSuffix(mediaType, "/json") || strings.HasSuffix(mediaType, "+json")
}

// checkContentType returns an error if the message has another content type than the codec reads. All JSON types count as the
// same. A message without a content type is accepted.
func checkContentType(codec Codec, msg *message.Message) error {
	have := msg.Metadata[driver.HeaderContentType]
	if have == "" {
		return nil
	}
	want := codec.ContentType()
	if have == want || bareMediaType(have) == bareMediaType(want) || isJSON(have) && isJSON(want) {
		return nil
	}
	return fmt.Errorf("its content type is %q, and the codec reads %s; give the bus a codec that reads both, or let the producer send %[2]s",
		driver.OneLine(have, 64), want)
}

// checkHeader returns an error if a header can't be set with [WithHeader].
func checkHeader(key, value string) error {
	if reservedHeader(key) {
		return fmt.Errorf("header %q is leat's own; there are options for what can be set", key)
	}
	lower := strings.ToLower(key)
	name, attribute := attributeOf(key)
	err := checkText(value)
	switch {
	case attribute:
		err = checkAttribute(name, value)
	case key == "":
		err = errors.New("its name is empty")
	case strings.HasPrefix(lower, attributePrefix):
		err = fmt.Errorf("%s stands before CloudEvents attributes, whose names are lower-case letters and digits", attributePrefix)
	case strings.HasPrefix(lower, ownPrefix):
		err = fmt.Errorf("%s stands before leat's own headers", ownPrefix)
	case checkText(key) != nil || strings.ContainsFunc(key, unicode.IsSpace):
		err = errors.New("its name has white space, a control character or invalid UTF-8")
	}
	if err != nil {
		return fmt.Errorf("header %q: %w", driver.OneLine(key, 64), err)
	}
	return nil
}
