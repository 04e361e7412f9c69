package amqp

import "fmt"

// maxNameBytes is the longest short string of AMQP 0-9-1: names, routing keys, header names and most properties.
const maxNameBytes = 255

// poisonSuffix ends the name of a group's poison queue.
const poisonSuffix = ".poison"

// An ordered group has a log of the keys that wait, and pairs of queues for parked messages; see orderedwire.go.
const (
	keysSuffix  = ".keys"
	parkedInfix = ".parked."

	// heldSuffix and leadSuffix end the names of queues that an earlier version had; see adopt.go.
	heldSuffix = ".held"
	leadSuffix = ".lead"
)

// The headers that leat adds to a message on the wire, and removes before the message is delivered to a handler. They must not
// begin with x-, because a headers exchange ignores such headers.
const (
	privatePrefix = "leat-"

	headerAttempt   = "leat-attempt"    // deliveries that count, before the next
	headerCrashes   = "leat-crashes"    // those of them that were not settled
	headerTopic     = "leat-topic"      // the topic, if the routing key is another
	headerPoisonID  = "leat-poison-id"  // a message's id in a poison queue
	headerPoisonRev = "leat-poison-rev" // how often it was changed there
	headerPilot     = "leat-pilot"      // marks a pilot; see renewal.go
	headerQueue     = "leat-queue"      // the queue that a poisoned message came from
	headerExtra     = "leat-extra"      // headers that can't stand under their own names, as JSON
	headerVersion   = "leat-version"    // ce_specversion, if the message has it
	headerOwn       = "leat-own"        // proves to its publisher that it has published the message; see trust.go
	headerUser      = "leat-user-id"    // the user-id of the original of a copy
	headerDeaths    = "leat-deaths"     // the x-death of the original of a copy

	headerDelay = "leat-delay-" // + digit: the message passes through that level of the delays

	// Headers of an ordered group's messages; see the package ordered.
	headerHead    = "leat-head"   // the name under which the message was sent away
	headerSeq     = "leat-seq"    // the position of a parked message
	headerStamp   = "leat-stamp"  // the pass that moved it
	headerName    = "leat-name"   // of a control message
	headerControl = "leat-note"   // what a control message is for
	headerRepeat  = "leat-repeat" // a parked message was delivered before

	// Headers of an earlier version; see adopt.go.
	headerHeld      = "leat-held-"      // their prefix
	headerHeldKey   = "leat-held-key"   // the message's key
	headerHeldPlace = "leat-held-place" // its position among the messages of its key
	headerHeldRev   = "leat-held-rev"   // how often it was rewritten at its position
	headerHeldUntil = "leat-held-until" // when it is due, in microseconds since 1970
	headerHeldNote  = "leat-held-note"  // what a control message is for
)

// headerWatermillUUID is the header in which Watermill writes the message's UUID.
const headerWatermillUUID = "_watermill_message_uuid"

// checkName returns an error if a name is too long for AMQP.
func checkName(what, name string) error {
	if len(name) > maxNameBytes {
		return fmt.Errorf("%s %q… has %d bytes; at most %d fit; shorten it", what, name[:32], len(name), maxNameBytes)
	}
	return nil
}
