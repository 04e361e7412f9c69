package amqp

import (
	"crypto/sha256"
	"encoding/hex"
	"hash/fnv"

	amqp "github.com/rabbitmq/amqp091-go"
)

// How a held message is known: by its key and its place there; and what it is a copy of, by a fingerprint.

// place is where a message stands among the held ones, and which of its revisions it is.
type place struct {
	key string
	at  int64
	rev int
}

// maxPlace leaves room for the places behind it. They are microseconds since 1970.
const maxPlace = 1 << 60

// placeOf is the place that a message tells of; ok is false where it has none.
func placeOf(d *amqp.Delivery) (p place, ok bool) {
	p.at, ok = d.Headers[headerHeldPlace].(int64)
	if p.at < 0 || p.at > maxPlace {
		p.at, ok = 0, false
	}
	p.key, _ = d.Headers[headerHeldKey].(string)
	p.rev = fieldInt(d.Headers[headerHeldRev])
	return p, ok
}

// printOf is the fingerprint of a message, 0 for one without an id: two of those may well be equal.
func printOf(d *amqp.Delivery) uint64 {
	if d.MessageId == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write(append([]byte(d.MessageId), 0)) // never fails
	_, _ = h.Write(d.Body)
	return h.Sum64()
}

// shortKey is the key by which leat knows a key: itself, or a digest of a long one.
func shortKey(key string) string {
	if len(key) <= maxNameBytes {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}
