package amqp

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The headers that leat writes for itself are believed only on messages that come from the default exchange. leat's
// copies go there: redeliveries, poisoned and held messages, replays. Who may write there can write to any queue, and is
// trusted; producers need no right to. On all other messages those headers are deleted before anything else looks at
// the message, and so no copy has them either.
//
// The exchange alone does not tell: what the broker dead-letters comes from the default exchange, too. It notes in
// x-death which queues it took the message from. Producers can write x-death as well, but not keep the broker from adding
// an entry for a queue that it really took the message from. So no entry may be of another queue than those for delays,
// which only leat writes to; and leat's own copies have no x-death.

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

// isRedelivering reports whether a queue is one that redeliveries wait in.
func isRedelivering(queue string) bool {
	for _, queueType := range []QueueType{Quorum, Classic} {
		if strings.HasPrefix(queue, (levels{queueType: queueType, way: wayRedeliver}).name("")) {
			return true
		}
	}
	return isRetryName(queue)
}

// distrust deletes headers of a message that only leat and the broker may have written, unless they have. It is called
// for each message that comes from a queue.
func distrust(d *amqp.Delivery) {
	if trusted(d) {
		return
	}
	for name := range d.Headers {
		switch {
		case name == headerExtra, name == headerVersion, name == headerOwn: // these travel with what is published
		case name == headerTooBig: // who writes it has only this message poisoned
		case strings.HasPrefix(name, privatePrefix), strings.HasPrefix(name, faultPrefix), name == headerLeftOut:
			delete(d.Headers, name)
		}
	}
	if !d.Redelivered { // the broker has not counted anything
		delete(d.Headers, "x-delivery-count")
		delete(d.Headers, "x-acquired-count")
	}
	if d.Exchange == "" {
		restoreTopic(d)
	}
}

// restoreTopic notes down where a message was published that the broker has dead-lettered. The entries of x-death begin
// with the last.
func restoreTopic(d *amqp.Delivery) {
	all := deaths(d.Headers["x-death"])
	first := all[len(all)-1] // else it would be trusted
	exchange, _ := first["exchange"].(string)
	if exchange == "" {
		return // one of leat's own copies, and not known for it any more
	}
	d.Headers[headerTopic] = exchange // of a topic that has its own
	if keys, _ := first["routing-keys"].([]any); len(keys) > 0 {
		if key, _ := keys[0].(string); key != "" {
			d.Headers[headerTopic] = key
		}
	}
}

// newOwnKey makes a key that only this transport knows.
func newOwnKey() []byte {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return key
}

// ownMark proves that this transport has published a message with the id under the bus's name, which is no secret.
func ownMark(key []byte, instance, id string) string {
	mac := hmac.New(sha256.New, key)
	_, _ = mac.Write([]byte(instance + "\x00" + id)) // never fails
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// isOwn reports whether the mark of a message is this transport's. Only the bus that has published a message asks for its
// name; for all others it is none.
func isOwn(headers amqp.Table, key []byte, instance, id string) bool {
	mark, _ := headers[headerOwn].(string)
	return key != nil && hmac.Equal([]byte(mark), []byte(ownMark(key, instance, id)))
}

// mayBeExtra reports whether a header is one that leat sends in headerExtra: no other can be set by it.
func mayBeExtra(name string) bool { return wireName(name) == "" }

// userHeader is the message's user-id as a header. The broker has checked the property; a header of that name is
// anybody's.
const userHeader = "amqp_user_id"
