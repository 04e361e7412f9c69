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
	// HeaderTypes lists the CloudEvents attributes that are not strings.
	HeaderTypes = privatePrefix + "ce_types"
)

var errPrivate = errors.New("names that begin with leat_ are leat's own; delete it, or give it another name")

// isPrivate reports whether a header is leat's own and must not be on a message that is published.
func isPrivate(name string) bool {
	return strings.HasPrefix(name, privatePrefix) && name != HeaderDeliverAt && name != HeaderInstance && name != HeaderTypes
}

// RefusePrivate returns an error if a message that is to be published has a header that only leat sets, such as the count of
// its failures. It may be called concurrently.
func RefusePrivate(msg *message.Message) error {
	first := "" // in the order of names, so that the error is always the same
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

// DropPrivate deletes the headers that only leat sets from a message that any producer may have written. Transports call it
// after they have read the headers that they wrote themselves.
func DropPrivate(headers message.Metadata) {
	maps.DeleteFunc(headers, func(name, _ string) bool { return isPrivate(name) })
}
