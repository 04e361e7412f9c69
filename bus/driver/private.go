package driver

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

const (
	// privatePrefix begins the names of headers that leat sets and producers don't.
	privatePrefix = "leat_"
	// HeaderTypes has the types of CloudEvents attributes that are not strings.
	HeaderTypes = privatePrefix + "ce_types"
)

var errPrivate = errors.New("names that begin with leat_ are leat's own; delete it, or give it another name")

// isPrivate reports whether a header is leat's own and does not travel with a published message.
func isPrivate(name string) bool {
	return strings.HasPrefix(name, privatePrefix) && name != HeaderDeliverAt && name != HeaderInstance && name != HeaderTypes
}

// RefusePrivate returns an error if a message to be published has a header that only leat sets, such as its count of
// failures. It may be called concurrently.
func RefusePrivate(msg *message.Message) error {
	first := "" // so that the error is the same each time
	for name := range msg.Metadata {
		if isPrivate(name) && (first == "" || name < first) {
			first = name
		}
	}
	if first == "" {
		return nil
	}
	return fmt.Errorf("message %s: header %q: %w", OneLine(MessageID(msg), MaxClassBytes), OneLine(first, MaxClassBytes), errPrivate)
}

// DropPrivate deletes the headers that only leat sets from a message that anybody may have written. Transports call it
// after they have taken what they wrote themselves.
func DropPrivate(headers message.Metadata) {
	maps.DeleteFunc(headers, func(name, _ string) bool { return isPrivate(name) })
}
