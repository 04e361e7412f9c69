package ordered

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// A Name identifies a parked copy, a pass, a marker, a fence, a turn, or (as text) a message that was sent away.
// It is unique within the group, and names are totally ordered: first by the epoch of the leader that chose it,
// then by a counter of its session. The zero Name comes before all others and is no name.
type Name struct{ Epoch, N uint64 }

// String returns the name in its wire format, such as "12-345".
func (n Name) String() string { return fmt.Sprintf("%d-%d", n.Epoch, n.N) }

// Compare returns a negative number if n was chosen before o, zero if they are equal, else a positive one.
func (n Name) Compare(o Name) int {
	return cmp.Or(cmp.Compare(n.Epoch, o.Epoch), cmp.Compare(n.N, o.N))
}

// ParseName parses what [Name.String] returned. It reports false for any other text, and for an epoch that no
// leader can have reached.
func ParseName(text string) (Name, bool) {
	epoch, n, found := strings.Cut(text, "-")
	e, err := strconv.ParseUint(epoch, 10, 64)
	if !found || err != nil || e > maxEpoch {
		return Name{}, false
	}
	c, err := strconv.ParseUint(n, 10, 64)
	if err != nil {
		return Name{}, false
	}
	name := Name{e, c}
	return name, name.String() == text // only one spelling is valid, because heads are compared as text
}

// MarshalText implements [encoding.TextMarshaler].
func (n Name) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (n *Name) UnmarshalText(text []byte) error {
	name, ok := ParseName(string(text))
	if !ok {
		return fmt.Errorf("ordered: %q is not a name", clip(string(text)))
	}
	*n = name
	return nil
}

// clip shortens text from the broker for an error.
func clip(text string) string { return text[:min(len(text), 40)] }

// A Print is a fingerprint of a message, part of a cryptographic hash: if a producer could make a message with the print of another
// one, that one could be dropped as handled. Its text is hexadecimal.
type Print [16]byte

// MarshalText returns the text.
func (p Print) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, p[:]), nil }

// UnmarshalText parses the text.
func (p *Print) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(p)) {
		return errRecord
	}
	_, err := hex.Decode(p[:], text)
	return err
}
