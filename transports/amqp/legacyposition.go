package amqp

import (
	"crypto/sha256"
	"encoding/hex"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/transports/internal/ordered"
)

// A legacyPosition is a message's position in <group>.held, with its revision.
type legacyPosition struct {
	key string
	at  int64
	rev int
}

// maxLegacyPosition bounds positions, which are microseconds since 1970.
const maxLegacyPosition = 1 << 60

// legacyPositionOf returns the position in a message's headers; ok is false if there is none.
func legacyPositionOf(d *amqp.Delivery) (p legacyPosition, ok bool) {
	p.at, ok = d.Headers[headerHeldPlace].(int64)
	if p.at < 0 || p.at > maxLegacyPosition {
		p.at, ok = 0, false
	}
	p.key, _ = d.Headers[headerHeldKey].(string)
	p.rev = fieldInt(d.Headers[headerHeldRev])
	return p, ok
}

// printOf returns the fingerprint of a message. It is zero for a message without an id, because different ones may be equal.
func printOf(d *amqp.Delivery) (p ordered.Print) {
	if d.MessageId == "" {
		return p
	}
	h := sha256.New()
	_, _ = h.Write(append([]byte{byte(len(d.MessageId))}, d.MessageId...)) //nolint:gosec // 255 bytes at most on the wire; Write never fails
	_, _ = h.Write(d.Body)
	copy(p[:], h.Sum(nil))
	return p
}

// shortKey returns the key, or a digest of a long key.
func shortKey(key string) string {
	if len(key) <= maxNameBytes {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}
