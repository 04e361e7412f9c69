package amqp

import "fmt"

// maxNameBytes is what a short string of AMQP 0-9-1 holds: names, routing keys, header names and
// most properties.
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

// The headers that leat puts beside a message's own on the wire, for itself. They are taken away
// again before the message is handed out. They must not begin with x-, because a headers exchange
// does not look at such.
const (
	privatePrefix = "leat-"

	headerAttempt   = "leat-attempt"    // hand-overs that counted, before the next
	headerCrashes   = "leat-crashes"    // those of them that nobody settled
	headerTopic     = "leat-topic"      // where the message was published, once the routing key is another
	headerPoisonID  = "leat-poison-id"  // a message's place in a poison queue
	headerPoisonRev = "leat-poison-rev" // how often it was changed there
	headerPilot     = "leat-pilot"      // no message; see renewal.go
	headerQueue     = "leat-queue"      // the queue that a poisoned message came from
	headerExtra     = "leat-extra"      // headers that can't stand under their own names, as JSON
	headerVersion   = "leat-version"    // ce_specversion where the message has it itself
	headerOwn       = "leat-own"        // proves to its publisher that the message is its own; see trust.go
	headerUser      = "leat-user-id"    // the user-id of the message that this is a copy of
	headerDeaths    = "leat-deaths"     // the x-death of the message that this is a copy of

	headerDelay = "leat-delay-" // + digit: the message passes through that level of the delays

	// Those of the messages of an ordered group; see the package ordered.
	headerHead   = "leat-head"   // the name under which the message was sent away
	headerSeq    = "leat-seq"    // the place of a parked message
	headerStamp  = "leat-stamp"  // the pass that has moved it
	headerName   = "leat-name"   // of a control message
	headerNote   = "leat-note"   // what a control message is for
	headerRepeat = "leat-repeat" // a parked message was delivered before

	// Those of an earlier version; see adopt.go.
	headerHeld      = "leat-held-"      // what they begin with that tell of a held message
	headerHeldKey   = "leat-held-key"   // its key
	headerHeldPlace = "leat-held-place" // its place among the messages of its key
	headerHeldRev   = "leat-held-rev"   // how often it was written anew at its place
	headerHeldUntil = "leat-held-until" // when it may be handed out, in microseconds since 1970
	headerHeldPrint = "leat-held-print" // a fingerprint of the message that it is a copy of
	headerHeldNote  = "leat-held-note"  // what it is where it is no message; see held
)

// headerWatermillUUID is where a plain Watermill service keeps the message's UUID.
const headerWatermillUUID = "_watermill_message_uuid"

// checkName says whether a name fits on the wire.
func checkName(what, name string) error {
	if len(name) > maxNameBytes {
		return fmt.Errorf("%s %q… has %d bytes; at most %d fit; shorten it", what, name[:32], len(name), maxNameBytes)
	}
	return nil
}
