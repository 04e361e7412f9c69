package amqp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// leat's own headers are trusted only on messages from the default exchange, to which leat publishes its copies: redeliveries,
// poisoned and parked messages, replays. A user who may write to the default exchange can write to any queue, and is trusted.
// Producers do not need that right. On all other messages these headers are deleted before the message is read or copied.
//
// The exchange alone is not enough, because messages that the broker dead-letters come from the default exchange too. The broker
// lists in x-death the queues that a message was dead-lettered from. Producers can write x-death as well, but can't prevent
// the broker from adding the real queue. So a message is trusted only if x-death has no queues but those for redeliveries, to
// which only leat publishes. leat's own copies have no x-death.

func trusted(d *amqp.Delivery) bool {
	if d.Exchange != "" {
		return false
	}
	for _, death := range deaths(d.Headers["x-death"]) {
		if queue, _ := death["queue"].(string); !isRedelivering(queue) {
			return false
		}
	}
	return true
}

// isRedelivering reports whether a queue is one in which redeliveries wait.
func isRedelivering(queue string) bool {
	for _, queueType := range []QueueType{Quorum, Classic} {
		if strings.HasPrefix(queue, (levels{queueType: queueType, direction: toGroup}).name("")) {
			return true
		}
	}
	return isRetryName(queue)
}

// dropForeignHeaders deletes the headers of a message that only leat and the broker may write, if the message is not trusted. It
// must be called for each message that is read from a queue.
func dropForeignHeaders(d *amqp.Delivery) {
	if trusted(d) {
		return
	}
	for name := range d.Headers {
		switch {
		case name == headerExtra, name == headerVersion, name == headerOwn: // these are published with messages
		case name == headerTooBig: // only causes this message to be poisoned
		case strings.HasPrefix(name, privatePrefix), strings.HasPrefix(name, faultPrefix), name == headerLeftOut:
			delete(d.Headers, name)
		}
	}
	if !d.Redelivered { // the broker has counted no delivery
		delete(d.Headers, "x-delivery-count")
		delete(d.Headers, "x-acquired-count")
	}
	if d.Exchange == "" {
		restoreTopic(d)
	}
}

// restoreTopic sets the topic of a message that the broker has dead-lettered. The first queue is the last entry of x-death.
func restoreTopic(d *amqp.Delivery) {
	all := deaths(d.Headers["x-death"])
	first := all[len(all)-1] // there is one, because the message is not trusted
	exchange, _ := first["exchange"].(string)
	if exchange == "" {
		return // one of leat's own copies
	}
	d.Headers[headerTopic] = exchange // of a topic that has its own
	if keys, _ := first["routing-keys"].([]any); len(keys) > 0 {
		if key, _ := keys[0].(string); key != "" {
			d.Headers[headerTopic] = key
		}
	}
}

// newOwnKey returns a random key.
func newOwnKey() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return key
}

// ownMark returns a mark that proves that this transport has published the message for a bus whose name is not secret.
func ownMark(key []byte, instance, id string) string {
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(instance + "\x00" + id)) // never fails
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// isOwn reports whether the mark of a message is this transport's.
func isOwn(headers amqp.Table, key []byte, instance, id string) bool {
	mark, _ := headers[headerOwn].(string)
	return key != nil && hmac.Equal([]byte(mark), []byte(ownMark(key, instance, id)))
}

// userHeader is the header for the property user-id, which the broker has checked. A header of that name on the wire is ignored.
const userHeader = "amqp_user_id"
