package database

import "strconv"

// A State is the state of a message of a group. Messages are found by one index on the group, the state, pos and
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
type State int

// The states. Statements have their names in braces.
const (
	StateReady    State = 0 // pos is 0; claimed if owner is a consumer whose lease has not expired
	StateDelayed  State = 1 // pos is the due time
	StatePoisoned State = 2 // pos is when it was poisoned
	StateHandled  State = 3 // pos is when it was handled; only if handled messages are kept
	StateKeyed    State = 4 // waits in the queue of its key; pos is the key's hash, 0 in a strictly ordered group
	StateKeyHead  State = 5 // claimed from its key's queue; no other message of the queue can be until it is settled or its owner's lease expires
	StateParked   State = 6 // waits behind a poisoned one of its key, and is not read by claims; pos is the key's hash
)

// stateNames are the names of the states. Statements have them in braces for the number, and the table of states
// has them for operators.
var stateNames = [...]string{ //nolint:gochecknoglobals // a constant
	StateReady: "ready", StateDelayed: "delayed", StatePoisoned: "poisoned", StateHandled: "handled",
	StateKeyed: "keyed", StateKeyHead: "keyhead", StateParked: "parked",
}

// statePairs returns the replacements of the states' names. A number is followed by the name as a comment, which
// makes statements in the server's log readable.
func statePairs() (pairs []string) {
	for n, name := range stateNames {
		pairs = append(pairs, "{"+name+"}", strconv.Itoa(n)+" /*"+name+"*/")
	}
	return pairs
}
