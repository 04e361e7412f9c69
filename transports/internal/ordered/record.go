package ordered

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The log is a queue to which any client with rights on the broker can publish, so every record is checked: Decode bounds sizes and
// numbers, and returns an error if a record is not valid. The reader skips such a record and logs it.

// Kinds of records. Each carries the epoch of its writer.
const (
	kindEpoch    = "epoch" // a process claims the epoch
	kindSnapshot = "snap"  // a part of the whole state
	kindBlock    = "block" // a message of the key is away; nothing of the key runs until it is done
	kindDone     = "done"  // it returned and was handled, or was dropped
	kindPark     = "park"  // later messages of the key are in this pair of parked queues, from this epoch on
	kindOpen     = "open"  // nothing of the key is parked any more
	kindSwept    = "swept" // everything that was parked when the log was lost was read
	kindTurn     = "turn"  // a pass has ended: all messages of the pair are on this side
)

// Bounds of records. The name of a head may come from an operator or an earlier version, and is longer than a Name.
const (
	maxEpoch    = 1 << 48
	maxRecord   = 1 << 20
	maxKey      = 1 << 10
	maxHead     = 1 << 8
	maxAway     = 1 << 10 // of one key
	maxPairs    = 64
	maxParts    = 1 << 16
	maxKeys     = 1 << 20
	keysPerPart = 500
	doneHeads   = 1 << 10 // how many heads that are done the log remembers
)

// A Record is one message of the log. The zero Record is not valid; machines make them.
type Record struct {
	Kind   string  `json:"kind"`
	Epoch  uint64  `json:"epoch"`
	N      uint64  `json:"n,omitempty"`      // grows within the epoch, so that a record counts once; not of a claim
	Writer string  `json:"writer,omitempty"` // epoch: a unique text of the claiming session
	After  uint64  `json:"after,omitempty"`  // epoch: the one that it follows
	Key    keyText `json:"key,omitempty"`
	Away   *away   `json:"away,omitempty"`  // block
	Head   string  `json:"head,omitempty"`  // done; block: the name that the message had before
	Pair   int     `json:"pair,omitempty"`  // park, turn
	Side   Side    `json:"side,omitempty"`  // turn
	Since  uint64  `json:"since,omitempty"` // park: an earlier epoch from which on copies count
	Turn   Name    `json:"turn,omitzero"`   // turn

	Part  int         `json:"part,omitempty"` // snap
	Parts int         `json:"parts,omitempty"`
	Lost  bool        `json:"lost,omitempty"` // the log was, and there has been no swept record since
	Keys  []keyRecord `json:"keys,omitempty"`
	Done  []string    `json:"done,omitempty"`
	Pairs []pairState `json:"pairs,omitempty"`
}

// away describes a message that was sent away under a name: into a delay or into the poison queue.
type away struct {
	Head   string `json:"head"`
	Digest Print  `json:"digest,omitzero"`
	Poison bool   `json:"poison,omitempty"`

	logged bool // its block record is confirmed
	drop   Tag  // a control message that drops it, which arrived before that
}

// keyRecord is a key in a snapshot.
type keyRecord struct {
	Key   keyText `json:"key"`
	Away  []*away `json:"away,omitempty"`
	Pair  int     `json:"pair,omitempty"`
	Since uint64  `json:"since,omitempty"`
}

// pairState says on which side of a pair of parked queues new copies go, and which of what is read is void.
type pairState struct {
	Side Side    `json:"side,omitempty"`
	Void [2]Name `json:"void"`
}

// keyText is a key in JSON, which has no text for bytes that are not UTF-8.
type keyText string

const keyBase64 = "base64:"

func (k keyText) MarshalText() ([]byte, error) {
	if utf8.ValidString(string(k)) && !strings.HasPrefix(string(k), keyBase64) {
		return []byte(k), nil
	}
	return []byte(keyBase64 + base64.StdEncoding.EncodeToString([]byte(k))), nil
}

func (k *keyText) UnmarshalText(text []byte) error {
	*k = keyText(text)
	if encoded, found := strings.CutPrefix(string(text), keyBase64); found {
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			return err
		}
		*k = keyText(raw)
	}
	return nil
}

// Encode returns the record as the body of a message.
func (r *Record) Encode() []byte {
	body, err := json.Marshal(r)
	if err != nil {
		panic(err) // it has no field that can't be marshaled
	}
	return body
}

var errRecord = errors.New("ordered: not a valid log record")

// Decode parses the body of a message of the log. The body may be anything.
func Decode(body []byte) (*Record, error) {
	if len(body) > maxRecord {
		return nil, fmt.Errorf("%w: %d bytes", errRecord, len(body))
	}
	r := new(Record)
	if err := json.Unmarshal(body, r); err != nil {
		return nil, fmt.Errorf("%w: %w", errRecord, err)
	}
	if !r.valid() {
		return nil, fmt.Errorf("%w: kind %q", errRecord, clip(r.Kind))
	}
	return r, nil
}

func (r *Record) valid() bool {
	if r.Epoch == 0 || r.Epoch > maxEpoch || len(r.Key) > maxKey || len(r.Head) > maxHead || len(r.Writer) > maxHead {
		return false
	}
	switch r.Kind {
	case kindEpoch:
		return r.Writer != ""
	case kindBlock:
		return r.Key != "" && r.Away.valid()
	case kindDone:
		return r.Key != "" && r.Head != ""
	case kindPark:
		return r.Key != "" && validPair(r.Pair) && r.Since <= r.Epoch
	case kindOpen:
		return r.Key != ""
	case kindTurn:
		return validPair(r.Pair) && r.Side.valid() && r.Turn != Name{}
	case kindSwept:
		return true
	case kindSnapshot:
		return r.validSnapshot()
	}
	return false // of a later version or another client
}

func (r *Record) validSnapshot() bool {
	if r.Part < 0 || r.Part >= r.Parts || r.Parts > maxParts || len(r.Pairs) > maxPairs || len(r.Keys) > keysPerPart || len(r.Done) > doneHeads {
		return false
	}
	for _, k := range r.Keys {
		if k.Key == "" || len(k.Key) > maxKey || k.Pair != 0 && !validPair(k.Pair) || k.Since > r.Epoch || len(k.Away) > maxAway {
			return false
		}
		for _, a := range k.Away {
			if !a.valid() {
				return false
			}
		}
	}
	for _, head := range r.Done {
		if head == "" || len(head) > maxHead {
			return false
		}
	}
	for _, p := range r.Pairs {
		if !p.Side.valid() {
			return false
		}
	}
	return true
}

func (a *away) valid() bool { return a != nil && a.Head != "" && len(a.Head) <= maxHead }

func validPair(pair int) bool { return pair >= 1 && pair <= maxPairs }
