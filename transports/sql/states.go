package sql

import "strconv"

// A state is the state of a message of a group. Messages are found by one index on the group, the state, pos and
// the id. So ready messages are in the order of arrival, delayed messages in the order of their due times, poisoned ones by the
// time when they were poisoned, and keyed ones by key queue.
//
//	          publish, with a key ─────────────► keyed ◄──────── poison of an earlier one ────► parked
//	          publish, for later ──► delayed       │ ▲                    is replayed, dropped
//	                                  │  ▲   claim │ │ redeliver, give back, its owner died
//	                              due │  │         ▼ │
//	publish ──────────────────────► ready        keyhead
//	                                  │             │
//	                                  └── ack ──────┴──► handled, or deleted
//	                                  └── poison ───┴──► poisoned ── replay ──► ready, keyed
type state int

const (
	stateReady    state = 0 // pos is 0; claimed if owner is a consumer whose lease has not expired
	stateDelayed  state = 1 // pos is the due time
	statePoisoned state = 2 // pos is when it was poisoned
	stateHandled  state = 3 // pos is when it was handled; only if handled messages are kept
	stateKeyed    state = 4 // waits in the queue of its key; pos is the key's hash, 0 in a strictly ordered group
	stateKeyHead  state = 5 // claimed from its key's queue; no other message of the queue can be until it is settled or its owner's lease expires
	stateParked   state = 6 // waits behind a poisoned one of its key, and is not read by claims; pos is the key's hash
)

// stateNames are the names of the states. Statements have them in braces for the number, and the table of states
// has them for operators.
var stateNames = [...]string{ //nolint:gochecknoglobals // a constant
	stateReady: "ready", stateDelayed: "delayed", statePoisoned: "poisoned", stateHandled: "handled",
	stateKeyed: "keyed", stateKeyHead: "keyhead", stateParked: "parked",
}

// statePairs returns the replacements of the states' names. A number is followed by the name as a comment, which
// makes statements in the server's log readable.
func statePairs() (pairs []string) {
	for n, name := range stateNames {
		pairs = append(pairs, "{"+name+"}", strconv.Itoa(n)+" /*"+name+"*/")
	}
	return pairs
}
