package sql

import "strconv"

// A state is where a message of a group is. Together with pos and id it is the one index by which
// messages are found: what is ready in the order of arrival, what waits by the time it is due, what
// is poisoned by the time of it, what is ordered by its key.
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
	stateReady    state = 0 // pos is 0; taken when owner is a live consumer
	stateDelayed  state = 1 // pos is when it is due
	statePoisoned state = 2 // pos is when it was poisoned
	stateHandled  state = 3 // pos is when it was handled; only if handled messages are kept
	stateKeyed    state = 4 // waits in the queue of its key; pos is the key's hash, 0 in a strictly ordered group
	stateKeyHead  state = 5 // taken from its key's queue; nothing else of the queue is, as long as its owner lives
	stateParked   state = 6 // waits behind a poisoned one of its key, out of the claims' way; pos is the key's hash
)

// stateNames are the states' names in statements, where a name in braces stands for the number, and in the
// table of states, for operators.
var stateNames = [...]string{ //nolint:gochecknoglobals // a constant
	stateReady: "ready", stateDelayed: "delayed", statePoisoned: "poisoned", stateHandled: "handled",
	stateKeyed: "keyed", stateKeyHead: "keyhead", stateParked: "parked",
}

// statePairs replaces the states' names by their numbers. The name follows as a comment, for whoever reads a
// statement in the server's log.
func statePairs() (pairs []string) {
	for n, name := range stateNames {
		pairs = append(pairs, "{"+name+"}", strconv.Itoa(n)+" /*"+name+"*/")
	}
	return pairs
}
